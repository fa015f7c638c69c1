"""After a sandbox's end, in its supervisor: the end is told, or nothing is left of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.runtimes.oci.containers.folder import (
    REASON,
    read_record,
    remove_folder,
    write_end,
)
from pytest_sandbox.runtimes.oci.containers.log import LOCK
from pytest_sandbox.runtimes.oci.containers.record import Ending, shell_status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PATIENCE: Final = 30.0
"""So long, in seconds, the end waits for the log: the disk may be slow."""
TIMEOUT: Final = 124


def tell(folder: Path, status: int, usage: Mapping[str, Any], *, remove: bool) -> None:
    """Write the end of the sandbox of `folder` (with everything that it said in its log), or remove
    the folder. `status` is as os.waitstatus_to_exitcode gives it.
    """
    code, reason = shell_status(status), ""
    with contextlib.suppress(OSError):
        reason = (folder / REASON).read_text(encoding="ascii")
    if reason == "timeout":
        code = TIMEOUT
    elif code == 128 + 9 and usage.get("oom_kills"):
        reason = "memory"
    _await_log(folder)
    with contextlib.suppress(FileNotFoundError):
        write_end(folder, Ending(code, time.time(), reason))
    record = read_record(folder)
    if remove or (record is not None and record.forgotten()):
        remove_folder(folder)


def _await_log(folder: Path) -> None:
    """The log's keeper holds a lock until it has read everything."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.002)
            else:
                return
    finally:
        os.close(descriptor)
