"""The registry's own recipes: its recorded facts, and what must hold for all of them.

PYTEST_SANDBOX_CORPUS names a folder of recipes and PYTEST_SANDBOX_FACTS the facts about them;
without both this file is not collected (conftest.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_sandbox.errors import PlanError
from pytest_sandbox.images.families import load_families
from pytest_sandbox.images.name import image_name
from pytest_sandbox.images.requirements import requirements_of
from pytest_sandbox.images.spec import derive_spec
from pytest_sandbox.plans.catalogue import Catalogue
from pytest_sandbox.plans.dependencies import dependency_tree
from pytest_sandbox.plans.resolve import resolve
from pytest_sandbox.plans.script import compile_plan
from pytest_sandbox.plans.serialize import plan_from_json, plan_to_json
from pytest_sandbox.recipes.load import find_recipes, load_recipe
from pytest_sandbox.recipes.select import unsupported_reason
from pytest_sandbox.targets import LINUX_TARGETS

CORPUS = os.environ.get("PYTEST_SANDBOX_CORPUS", "")
FACTS = os.environ.get("PYTEST_SANDBOX_FACTS", "")


@pytest.fixture(scope="module")
def recipes():
    """Path below the corpus -> recipe."""
    root = Path(CORPUS)
    return {str(path.relative_to(root)): load_recipe(path) for path in find_recipes([root])}


@pytest.fixture(scope="module")
def known(recipes):
    found = Catalogue([CORPUS])
    for one in recipes.values():
        found.add(one)
    return found


def runnable(recipes):
    for one in recipes.values():
        for target in LINUX_TARGETS:
            if not unsupported_reason(one, target):
                yield one, target


def test_dependencies(recipes, known):
    facts = {entry["path"]: entry for entry in json.loads(Path(FACTS).read_text())["recipes"]}
    names = {one.name for one in recipes.values()}
    compared = 0
    for path, one in recipes.items():
        for target in LINUX_TARGETS:
            expected = facts[path]["sandbox"][str(target)]["deps"]
            tree = dependency_tree(one, target, known)
            if tree.missing:  # half of the registry is not in the corpus
                assert not set(tree.missing) & names
                continue
            assert list(tree.names()) == expected, (path, str(target))
            compared += 1
    assert compared > 6500


def test_every_pair_has_a_plan_and_at_most_one_image(recipes, known):
    families = load_families()
    images = set()
    for one, target in runnable(recipes):
        if target.arch not in families[target.family].arches:
            continue
        plan = resolve(one, target, catalogue=known, need_versions=False)
        spec = derive_spec(requirements_of(plan, target), target, families=families)
        assert len(spec.packages) <= 1
        images.add(image_name(spec))
        backwards = plan.__copy__()
        for part in (backwards, *backwards.dependencies):
            for number, step in enumerate(part.steps):
                if isinstance(packages := step.params.get("packages"), list):
                    step.params["packages"] = [*reversed(packages), *packages]
                    part.steps[number] = step
        again = derive_spec(requirements_of(backwards, target), target, families=families)
        assert image_name(again) == image_name(spec), (one.name, str(target))
    assert len(images) > 50


def test_plans_survive_json(recipes, known):
    for one, target in runnable(recipes):
        text = plan_to_json(resolve(one, target, catalogue=known, need_versions=False))
        assert plan_to_json(plan_from_json(text)) == text, (one.name, str(target))


def test_what_does_not_compile_says_why(recipes, known):
    versions = {one.name: "1.0" for one in recipes.values()}
    compiled, refused = 0, []
    for one, target in runnable(recipes):
        try:
            plan = resolve(one, target, catalogue=known, versions=versions)
            compile_plan(plan)
            compiled += 1
        except PlanError as wrong:
            refused.append(wrong)
    assert compiled > 100
    assert [str(wrong) for wrong in refused if wrong.blame != "unsupported"] == []
