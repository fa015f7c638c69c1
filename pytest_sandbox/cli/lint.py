"""`pytest-sandbox lint`: what is wrong or doubtful in recipe files."""

from __future__ import annotations

import sys

import click
import msgspec

from pytest_sandbox.recipes.lint import lint_file
from pytest_sandbox.recipes.load import find_recipes


@click.command("lint")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a finding.")
def command(paths: tuple[str, ...], *, strict: bool, as_json: bool) -> None:
    """Look for errors and silent traps in recipes (files, or folders of them).

    Exits with 1 if there is an error, with 2 for a file that is not there.
    """
    recipes = find_recipes(paths)
    errors = warnings = 0
    for path in recipes:
        for finding in lint_file(path):
            if finding.severity == "error":
                errors += 1
            else:
                warnings += 1
            if as_json:
                click.echo(msgspec.json.encode(finding).decode())
            else:
                click.echo(str(finding))
    if not as_json:
        click.echo(
            f"{_count(len(recipes), 'recipe')}: "
            f"{_count(errors, 'error')}, {_count(warnings, 'warning')}",
            err=True,
        )
    sys.exit(1 if errors or (strict and warnings) else 0)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
