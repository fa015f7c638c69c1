"""Small files of a store: written beside, then renamed, so that a reader sees all or nothing.

Nothing is synchronised to the disk: a file that a crash of the machine left empty or torn is not
valid JSON, or does not have its digest, and counts as absent.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def write_json(file: Path, value: object) -> None:
    """Put `value` in the place of `file`."""
    write_bytes(file, json.dumps(value, sort_keys=True).encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Put `data` in the place of `file`."""
    aside = file.with_name(f".{file.name[:100]}.{os.urandom(6).hex()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        aside.rename(file)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in `file`; None where there is none that can be read."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def names(folder: Path) -> list[str]:
    """What is in a folder, without names that begin with a dot; none where it is missing."""
    try:
        found = os.listdir(folder)  # noqa: PTH208 - names are what is wanted
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.startswith("."))
