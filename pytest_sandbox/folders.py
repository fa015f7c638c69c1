"""The folders that the project keeps things in, below the user's own.

Written here and not left to platformdirs: that library registers a pytest plugin of its own, which
every pytest run of an environment would pay for.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, Phase, SandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHE_VARIABLE: Final = "PYTEST_SANDBOX_CACHE"
DATA_VARIABLE: Final = "PYTEST_SANDBOX_DATA"
_NAME: Final = "pytest-sandbox"


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where what can be made again lives: PYTEST_SANDBOX_CACHE, else the user's cache folder."""
    environ = os.environ if environ is None else environ
    return _folder(environ, CACHE_VARIABLE, "XDG_CACHE_HOME", ".cache", "Library/Caches")


def data_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where what must last lives: PYTEST_SANDBOX_DATA, else the user's data folder."""
    environ = os.environ if environ is None else environ
    return _folder(
        environ, DATA_VARIABLE, "XDG_DATA_HOME", ".local/share", "Library/Application Support"
    )


def _folder(environ: Mapping[str, str], own: str, xdg: str, unix: str, darwin: str) -> Path:
    """XDG Base Directory Specification: a relative path in a variable is to be ignored."""
    if environ.get(own):
        return Path(environ[own])
    home = Path(environ.get("HOME") or Path("~").expanduser())
    if sys.platform == "darwin":
        return home / darwin / _NAME
    given = environ.get(xdg, "")
    return (Path(given) if Path(given).is_absolute() else home / unix) / _NAME


def make_folder(folder: Path, variable: str) -> Path:
    """Make `folder` if it is not there; `variable` is what would name another one.

    Raises SandboxError (blame host) where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        msg = f"the folder {folder} cannot be made: {wrong.strerror or wrong}"
        next_step = f"set {variable} to a folder that you can write"
        raise SandboxError(
            msg, phase=Phase.IMAGE, blame=Blame.HOST, next_step=next_step
        ) from None
    return folder
