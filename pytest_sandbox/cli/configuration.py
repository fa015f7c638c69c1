"""What the verbs share: settings from options, environment and the project's pytest configuration,
and the recipes and targets that a command line names."""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import tomli

from pytest_sandbox.errors import UsageError
from pytest_sandbox.plans.catalogue import Catalogue
from pytest_sandbox.recipe_paths import folders
from pytest_sandbox.recipes.load import find_recipes
from pytest_sandbox.settings import SETTINGS, Settings, read_settings
from pytest_sandbox.targets import ALL_TARGETS, Target, host_arch, match_targets, on_this_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_sandbox.images.families import Family

_FILES: Final = (
    ("pytest.toml", ("pytest",)),
    (".pytest.toml", ("pytest",)),
    ("pytest.ini", ("pytest",)),
    (".pytest.ini", ("pytest",)),
    ("pyproject.toml", ("tool", "pytest")),
    ("tox.ini", ("pytest",)),
    ("setup.cfg", ("tool:pytest",)),
)
"""Where pytest looks for its configuration, in its order, and the table there."""


def cli_settings(**options: Any) -> Settings:
    """The settings as a run in this folder would have them; `options` win. Raises UsageError."""
    ini = _project_table(Path.cwd())
    # Most verbs need no engine, and the project's own plugins may know more names than we do.
    return read_settings(
        options.get, lambda key: ini.get(f"sandbox_{key}"), os.environ, any_runtime=True
    )


def _project_table(folder: Path) -> Mapping[str, Any]:
    for parent in (folder, *folder.parents):
        for name, keys in _FILES:
            file = parent / name
            if file.is_file() and (table := _table(file, keys)) is not None:
                return table
    return {}


def _table(file: Path, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The pytest table of a file, or None. A file that cannot be read is pytest's to report."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".toml":
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(text)
            return parser[keys[0]] if parser.has_section(keys[0]) else None
        found: Any = tomli.loads(text)
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError, configparser.Error):
        return None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, dict) and keys[0] == "tool":
        found = found.get("ini_options", found)
    return found if isinstance(found, dict) else None


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
