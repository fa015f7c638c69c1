"""Recipes and plans for the tests of this folder."""

from __future__ import annotations

from pytest_sandbox.plans.catalogue import Catalogue
from pytest_sandbox.plans.resolve import resolve
from pytest_sandbox.recipes.load import parse_recipe
from pytest_sandbox.targets import Target

DEBIAN = Target.parse("linux/amd64/debian")
ALPINE = Target.parse("linux/arm64/alpine")
SHA = "ab" * 32


def recipe(steps, *, name="jq", metadata="", verify='command = "jq --version"', rest=""):
    """A recipe from the text of its steps."""
    return parse_recipe(
        f'[metadata]\nname = "{name}"\n{metadata}\n{rest}\n{steps}\n[verify]\n{verify}\n'
    )


def step(action, **params):
    """The text of one step; values are TOML."""
    lines = [f"{key} = {value}" for key, value in params.items()]
    return "\n".join(["[[steps]]", f'action = "{action}"', *lines])


def plan(steps, *, target=DEBIAN, versions=None, catalogue=None, **keywords):
    """The plan of a recipe from the text of its steps."""
    return resolve(recipe(steps, **keywords), target, versions=versions or {}, catalogue=catalogue)


def catalogue(*recipes):
    """A catalogue of recipes without files."""
    found = Catalogue(())
    for one in recipes:
        found.add(one)
    return found
