"""Lint: everything that can be said about a recipe file without running it."""

from __future__ import annotations

import os

from pytest_sandbox.errors import RecipeError
from pytest_sandbox.recipes.findings import Finding
from pytest_sandbox.recipes.lint_steps import step_remarks
from pytest_sandbox.recipes.lint_tables import table_remarks
from pytest_sandbox.recipes.load import parse_document, place, read_text, recipe_of
from pytest_sandbox.recipes.traps import traps

__all__ = ["Finding", "lint_file", "lint_text"]


def lint_text(text: str, path: str = "") -> list[Finding]:
    """Every finding about a recipe's text, in the order of its lines. A recipe that does not load
    has one error that says so, and the warnings about what is misspelt in it."""
    try:
        document = parse_document(text, path)
    except RecipeError as wrong:
        return [_finding(wrong)]
    warnings = traps(document)
    try:
        recipe = recipe_of(document, text, path)
    except RecipeError as wrong:
        return [_finding(wrong), *place(warnings, text, path)]
    found = [*table_remarks(recipe, document), *step_remarks(recipe)]
    wrong_places = {remark.where for remark in found if remark.severity == "error"}
    found += [remark for remark in warnings if remark.where not in wrong_places]
    return place(found, text, path)


def lint_file(path: str | os.PathLike[str]) -> list[Finding]:
    """lint_text of a file; one that cannot be read is an error finding."""
    name = os.fspath(path)
    try:
        text = read_text(name)
    except RecipeError as wrong:
        return [_finding(wrong)]
    return lint_text(text, name)


def _finding(wrong: RecipeError) -> Finding:
    message = wrong.what.removeprefix(f"{wrong.key}: ") if wrong.key else wrong.what
    if wrong.next_step:
        message += f" ({wrong.next_step})"
    return Finding(
        path=wrong.path,
        line=wrong.line or 0,
        key=wrong.key,
        severity="error",
        message=message,
    )
