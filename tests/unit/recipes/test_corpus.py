"""The registry's own recipes: every one loads, and filter and support are as the registry decides.

Collected only where PYTEST_SANDBOX_CORPUS names a folder of recipes and PYTEST_SANDBOX_FACTS the
record of what the registry's own code says about them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_sandbox.recipes.lint import lint_file
from pytest_sandbox.recipes.load import read_recipe
from pytest_sandbox.recipes.select import steps_for, unsupported_reason
from pytest_sandbox.targets import ALL_TARGETS, LINUX_TARGETS

CORPUS = os.environ.get("PYTEST_SANDBOX_CORPUS", "")
FACTS = os.environ.get("PYTEST_SANDBOX_FACTS", "")

if CORPUS and FACTS:

    @pytest.fixture(scope="module")
    def corpus():
        paths = sorted(Path(CORPUS).rglob("*.toml"))
        assert paths
        return {path.relative_to(CORPUS).as_posix(): read_recipe(path) for path in paths}

    @pytest.fixture(scope="module")
    def records():
        facts = json.loads(Path(FACTS).read_text(encoding="utf-8"))
        return {record["path"]: record for record in facts["recipes"]}

    def test_every_recipe_is_recorded(corpus, records):
        assert set(corpus) <= set(records)
        assert [path for path in corpus if corpus[path][0].name != records[path]["name"]] == []

    def test_filter(corpus, records):
        different = [
            (path, str(target))
            for path, (recipe, _) in corpus.items()
            for target in ALL_TARGETS
            if [step.action for step in steps_for(recipe, target)]
            != records[path]["filtered"][str(target)]
        ]
        assert different == []

    def test_support(corpus, records):
        different = [
            (path, str(target))
            for path, (recipe, _) in corpus.items()
            for target in LINUX_TARGETS
            if (not unsupported_reason(recipe, target))
            != (str(target) in records[path]["supported"])
        ]
        assert different == []

    def test_real_recipes_hold_few_traps(corpus):
        found = [str(finding) for _, findings in corpus.values() for finding in findings]
        assert len(found) < len(corpus) / 20

    def test_real_recipes_pass_lint(corpus):
        wrong = {
            finding.path
            for path in corpus
            for finding in lint_file(Path(CORPUS) / path)
            if finding.severity == "error"
        }
        assert len(wrong) < len(corpus) / 100
