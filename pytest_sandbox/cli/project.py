"""The settings of verbs: from options, environment, and what pytest is configured with here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pytest_sandbox.settings import Settings

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
_PREFIX: Final = "PYTEST_SANDBOX_"


def cli_settings(**options: Any) -> Settings:
    """The settings as a run in this folder would have them; `options` win. Raises UsageError."""
    from pytest_sandbox.settings import read_settings

    here = _here()
    ini = {} if here is None else _project_table(here)
    # Most verbs need no engine, and the project's own plugins may know more names than we do.
    return read_settings(
        options.get,
        lambda key: ini.get(f"sandbox_{key}"),
        os.environ,
        any_runtime=True,
        dashes="--",
    )


def chosen_settings(options: Mapping[str, Any], keys: Collection[str]) -> Settings | None:
    """The same, as far as `keys` go; None where nobody sets any of them: most calls of `run` do not
    pay for reading settings. Raises UsageError.
    """
    given = {key: options[key] for key in keys if options.get(key)}
    told = any(os.environ.get(_PREFIX + key.upper()) for key in keys)
    if not given and not told and not _mentioned([f"sandbox_{key}" for key in keys]):
        return None
    return cli_settings(**given)


def _here() -> Path | None:
    """The current folder; None where somebody removed it: then there is no project around it."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _mentioned(names: Collection[str]) -> bool:
    """Whether a file that pytest might read says something of these ini keys."""
    here = _here()
    for file in () if here is None else _candidates(here):
        with contextlib.suppress(OSError):
            text = Path(file).read_bytes()
            if b"sandbox_" in text and any(name.encode() in text for name in names):
                return True
    return False


def _candidates(folder: Path) -> Iterator[str]:
    for parent in (folder, *folder.parents):
        for name, _ in _FILES:
            file = os.path.join(parent, name)  # noqa: PTH118 - a path costs more than the look
            if os.access(file, os.R_OK):
                yield file


def _project_table(folder: Path) -> Mapping[str, Any]:
    for parent in (folder, *folder.parents):
        for name, keys in _FILES:
            file = parent / name
            if file.is_file() and (table := _table(file, keys)) is not None:
                return table
    return {}


def _table(file: Path, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The pytest table of a file, or None. A file that cannot be read is pytest's to report."""
    import configparser

    import tomli

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
