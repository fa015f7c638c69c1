"""The first process of a sandbox, noted on the disk: what a killed supervisor leaves is found.

Between an engine's `create` and `start` nothing but this note knows of it: it has no init yet that
would end with the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from pytest_sandbox.oci.lifetimes import started
from pytest_sandbox.oci.waiting import ended

_NAME: Final = "first.pid"
_PATIENCE: Final = 5.0


def file_of(folder: str | Path) -> Path:
    """Where the engine writes the pid, in the sandbox's folder of the store."""
    return Path(folder, _NAME)


def kill_left(folder: str | Path) -> bool:
    """Kill the noted process if it still lives, and before that an engine that is still creating
    it; whether the process lived.
    """
    _kill_engine(Path(folder).name)
    file = file_of(folder)
    try:
        pid, written = int(file.read_text(encoding="ascii")), file.stat().st_mtime
        began = started(pid)
    except (OSError, ValueError):
        return False
    if began is None:
        return False
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    if age + 0.05 < time.time() - written:
        return False  # it began after the note was written: somebody else's
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _kill_engine(name: str) -> None:
    """An engine's `create` outlives the supervisor that was killed; its name is its last word."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if words[-1] == os.fsencode(name) and b"create" in words and b"--bundle" in words:
                os.kill(int(process.name), signal.SIGKILL)
                ended(int(process.name), _PATIENCE)
