"""What the verbs share: the recipes and targets that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_sandbox.errors import UsageError
from pytest_sandbox.options import SETTINGS
from pytest_sandbox.plans.catalogue import Catalogue
from pytest_sandbox.recipe_paths import folders
from pytest_sandbox.recipes.load import find_recipes
from pytest_sandbox.targets import ALL_TARGETS, Target, host_arch, match_targets, on_this_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_sandbox.images.families import Family
    from pytest_sandbox.settings import Settings


def recipe_files(paths: Sequence[str]) -> list[Path]:
    """The recipe files that the arguments name. Raises UsageError for one that is not there."""
    files = find_recipes(paths)
    if not files:
        msg = f"no recipes in {', '.join(paths)}"
        raise UsageError(msg, next_step="name a recipe file or a folder that holds some")
    return files


def catalogue_for(paths: Sequence[str], extra: Sequence[str], settings: Settings) -> Catalogue:
    """Where dependencies are looked up: beside the recipes that are named, then the run's folders.

    Registries keep their recipes in one folder a letter: then the folder above counts too.
    """
    found = dict.fromkeys(Path(folder).absolute() for folder in extra)
    for folder in folders(settings.recipes, Path.cwd(), paths):
        found[folder] = None
        if len(folder.name) == 1:
            found[folder.parent] = None
    for path in map(Path, paths):
        if path.is_dir():
            found[path.absolute()] = None
    return Catalogue(found)


def chosen_targets(patterns: Sequence[str], default: Sequence[Target]) -> Sequence[Target]:
    """The targets that `--target` names, else the default. Raises UsageError.

    A bare family means this machine's architecture, as it does for pytest.
    """
    return match_targets(on_this_arch(patterns), ALL_TARGETS) if patterns else default


def default_target() -> tuple[Target, ...]:
    """Debian on this machine's architecture."""
    return (Target("linux", host_arch(), "debian"),)


def families_of(settings: Settings) -> Mapping[str, Family]:
    """The families with the user's own file and bases. Raises UsageError."""
    from pytest_sandbox.images.families import load_families

    return load_families(settings.families, settings.bases())


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments and options of every verb that looks at recipes."""
    for option in reversed(
        (
            click.argument("paths", nargs=-1, required=True, metavar="RECIPE..."),
            click.option(
                "--target", "targets", multiple=True, metavar="GLOB", help=_help("target")
            ),
            click.option(
                "--version", "version", multiple=True, metavar="NAME=VERSION", help=_help("version")
            ),
            click.option(
                "--recipes",
                "extra",
                multiple=True,
                metavar="FOLDER",
                help="Look dependencies up here first",
            ),
            click.option("--families", metavar="FILE", help=_help("families")),
            click.option("--base", multiple=True, metavar="FAMILY=REFERENCE", help=_help("base")),
        )
    ):
        command = option(command)
    return command


def _help(name: str) -> str:
    return next(setting.help for setting in SETTINGS if setting.name == name)
