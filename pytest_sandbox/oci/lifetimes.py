"""Which process is meant, and whether it still lives: a pid alone is soon somebody else's.

A process is boot id + pid namespace + pid + start time.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def boot_id() -> str:
    """A new one with each start of the machine; `unknown` where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def pid_namespace() -> str:
    """The number of this process's pid namespace; `unknown` where the kernel does not say."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "unknown"


def started(pid: int) -> int | None:
    """The start of a living process in clock ticks since boot; None for none, or a zombie.

    Raises OSError where that cannot be told (too many open files, a process that /proc hides).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if _exists(pid):
            msg = f"/proc does not show process {pid}"
            raise PermissionError(msg) from None
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def is_over(pid: int, began: int | None = None) -> bool:
    """Whether a process is certainly gone: there is none with that pid, or (with `began`) one that
    began at another time. Of what cannot be told, nobody may clear anything away.
    """
    try:
        found = started(pid)
    except OSError:
        return False
    return found is None or (began is not None and found != began)


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
