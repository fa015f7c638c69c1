"""`pytest-sandbox plan`: the steps of a recipe on a target, as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pytest_sandbox.cli.configuration import (
    catalogue_for,
    chosen_targets,
    default_target,
    recipe_files,
    recipe_options,
)
from pytest_sandbox.cli.project import cli_settings
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plans.resolve import resolve
from pytest_sandbox.plans.serialize import plan_to_json
from pytest_sandbox.plans.versions import parse_versions
from pytest_sandbox.recipes.load import load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("plan")
@recipe_options
def command(
    paths: tuple[str, ...], targets: tuple[str, ...], extra: Sequence[str], **options: Any
) -> None:
    """Print the plan of each recipe (format_version 5), dependencies included.

    For Debian on this architecture unless --target names others. Exits with 1 where there is
    no plan.
    """
    settings = cli_settings(**options)
    chosen = chosen_targets(targets, default_target())
    catalogue = catalogue_for(paths, extra, settings)
    versions = parse_versions(settings.version)
    failed = False
    for path in recipe_files(paths):
        for target in chosen:
            try:
                recipe = load_recipe(path)
                plan = resolve(recipe, target, catalogue=catalogue, versions=versions)
            except SandboxError as wrong:
                failed = True
                click.echo(f"pytest-sandbox: {wrong}", err=True)
                continue
            for obstacle in plan.obstacles:
                click.echo(f"pytest-sandbox: note: {obstacle}", err=True)
            click.echo(plan_to_json(plan), nl=False)
    sys.exit(1 if failed else 0)
