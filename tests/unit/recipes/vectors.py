"""The registry's own records (facts about its behaviour), as they lie in tests/data/recipes."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_sandbox.targets import Target

DATA = Path(__file__).parents[2] / "data" / "recipes"


def vectors(name):
    """One group of records."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def recorded_targets():
    """Key of a record -> target."""
    return {
        record["key"]: Target(
            record["os"], record["arch"], record["linux_family"], gpu=record["gpu"]
        )
        for record in vectors("targets")
    }


def recipe_text(steps, *, metadata="", rest=""):
    """A small recipe around the steps under test."""
    return (
        f'[metadata]\nname = "a"\ndescription = "A"\n{metadata}\n'
        f'{steps}\n[verify]\ncommand = "a --version"\n{rest}'
    )
