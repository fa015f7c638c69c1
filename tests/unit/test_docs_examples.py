"""What the README and the pages show can be read, found and run."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from pytest_sandbox.cli import VERBS
from pytest_sandbox.recipes.lint import lint_text

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PROSE = {"is", "needs", "reads", "proves", "maps", "makes"}
"""What may stand behind the name at the start of a line that is no command."""
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks(page, language):
    """The fenced blocks of one language, without their indentation."""
    return [
        re.sub(rf"(?m)^{indent}", "", text)
        for indent, word, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if word == language
    ]


def cases(language):
    """Every block of a language, with its page and number as the id."""
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, language), 1)
    ]


@pytest.mark.parametrize("text", cases("toml"))
def test_toml_is_toml_and_whole_recipes_lint_clean(text):
    document = tomllib.loads(text)
    if "metadata" in document and "verify" in document:
        errors = [str(found) for found in lint_text(text) if found.severity == "error"]
        assert errors == []


@pytest.mark.parametrize("text", cases("python"))
def test_python_compiles(text):
    ast.parse(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_exist(page):
    text = page.read_text(encoding="utf-8")
    calls = re.findall(r"(?m)(?:`|bin/|^ *)pytest-sandbox ([a-z]+)(?: ([a-z]+))?", text)
    calls = [call for call in calls if call[0] not in PROSE]
    for verb, below in calls:
        assert verb in VERBS
        if verb == "image":
            assert below in import_module("pytest_sandbox.cli.image").VERBS


def test_readme_has_two_commands():
    page = ROOT / "README.md"
    first, second = blocks(page, "sh")
    assert "--sandbox" in first
    assert first.count("\n") == second.count("\n") == 1
    assert f"<!-- ci: test -->\n```sh\n{second}```" in page.read_text(encoding="utf-8")


def test_no_machine_is_named():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(?:work/(?!space)|root/)", text), page


def test_architecture_has_the_layers_that_are_held():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [
        one["layers"]
        for one in contract["tool"]["importlinter"]["contracts"]
        if one["type"] == "layers"
    ]
    wanted = " > ".join(
        layer.replace("pytest_sandbox.", "").replace(" | ", ", ") for layer in layers
    )
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert wanted in " ".join(text.split())
