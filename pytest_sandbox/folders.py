"""The folders that the project keeps things in, below the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.errors import Blame, Phase, SandboxError

if TYPE_CHECKING:
    from pathlib import Path


def make_folder(folder: Path, variable: str) -> Path:
    """Make `folder` if it is not there; `variable` is what would name another one.

    Raises SandboxError (blame host) where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        msg = f"the folder {folder} cannot be made: {wrong.strerror or wrong}"
        next_step = f"set {variable} to a folder that you can write"
        raise SandboxError(msg, phase=Phase.IMAGE, blame=Blame.HOST, next_step=next_step) from None
    return folder
