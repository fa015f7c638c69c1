"""The rooms of supervisors: empty folders that any id can walk to, each with a tmpfs over it that
only its supervisor sees.

A room is named after its supervisor. To remove a folder that is mounted upon elsewhere would take
that mount away, so only the rooms of supervisors that are gone are swept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci.lifetimes import is_over, pid_namespace

PREFIX: Final = "pytest-sandbox-room-"
_PLACES: Final = ("/tmp", "/run", "/var/tmp")
_NAME: Final = re.compile(re.escape(PREFIX) + r"([a-z0-9]+)-([0-9]+)-[0-9a-f]+")


def make_room(supervisor: int) -> str:
    """A new room for the supervisor with that pid. Raises RuntimeUnavailable."""
    name = f"{PREFIX}{pid_namespace()}-{supervisor}-{os.urandom(6).hex()}"
    for place in _PLACES:
        folder = Path(place, name)
        try:
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)
        except OSError:
            continue
        return str(folder)
    msg = f"no folder for mount points can be made in {', '.join(_PLACES)}"
    raise RuntimeUnavailable(msg, next_step="make /tmp writable")


def sweep_rooms() -> int:
    """Remove the rooms of our supervisors that were killed; the number of them."""
    count = 0
    for place in _PLACES:
        for folder in Path(place).glob(PREFIX + "*"):
            match = _NAME.fullmatch(folder.name)
            if match is None or match[1] != pid_namespace() or not is_over(int(match[2])):
                continue
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.geteuid():
                    _remove(folder)
                    count += 1
    return count


def _remove(room: Path) -> None:
    try:
        room.rmdir()
    except OSError as wrong:
        if wrong.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        # An engine that outlives its supervisor for a moment makes what it misses anew: here, where
        # nothing is mounted any more.
        import shutil

        shutil.rmtree(room)
