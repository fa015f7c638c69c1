"""`pytest-sandbox migrate`: rewrite recipes that still have an install_guide."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from pathlib import Path

import click

from pytest_sandbox.errors import RecipeError, printable
from pytest_sandbox.recipes.lint import lint_text
from pytest_sandbox.recipes.load import find_recipes, read_text
from pytest_sandbox.recipes.migrate import migrate_text


@click.command("migrate")
@click.argument("paths", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--write", is_flag=True, help="Rewrite the files instead of printing a diff.")
def command(paths: tuple[str, ...], *, write: bool) -> None:
    """Turn install_guide into packages and manual steps: prints a diff, --write does it.

    Exits with 1 if a recipe is not valid TOML or has lint errors even then.
    """
    failed = False
    for path in find_recipes(paths):
        try:
            failed |= not _migrate(path, write=write)
        except RecipeError as wrong:
            click.echo(f"pytest-sandbox: {wrong}", err=True)
            failed = True
    sys.exit(1 if failed else 0)


def _migrate(path: Path, *, write: bool) -> bool:
    name = str(path)
    text = read_text(name)
    migration = migrate_text(text, name)
    if not migration.changed:
        click.echo(f"{name}: nothing to migrate")
        return True
    if not migration.comments_kept:
        click.echo(f"{name}: written anew, comments are lost", err=True)
    if write:
        _replace(path, migration.text)
        click.echo(f"{name}: migrated")
    else:
        diff = difflib.unified_diff(
            text.splitlines(), migration.text.splitlines(), name, f"{name} (migrated)", lineterm=""
        )
        for line in diff:
            click.echo(printable(line))
    left = [found for found in lint_text(migration.text, name) if found.severity == "error"]
    for finding in left:
        click.echo(str(finding), err=True)
    return not left


def _replace(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a crash leaves one of the two whole."""
    real = path.resolve()
    handle, beside = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
        Path(beside).chmod(real.stat().st_mode & 0o7777)
        Path(beside).replace(real)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
