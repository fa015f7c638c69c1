"""How much of this machine systems that nobody uses yet may take: memory, cores, their starters."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE: Final = 16 << 20
"""Bytes that one waiting system is reckoned with: an engine's shim is the most of it."""
SHARE: Final = 8
"""All waiting systems of a run together take at most this part of the memory that is free."""
_PER_CORE: Final = 4
_MOST: Final = 50
"""Beyond some fifty the kernel itself is slower at making systems."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory() -> int:
    """Bytes that are free for this process: the machine's, or what its control groups leave."""
    found = [_available()]
    for folder, limit, used in _groups():
        with contextlib.suppress(OSError, ValueError):  # `max` is no number, and no limit
            most = int((folder / limit).read_text())
            now = int((folder / used).read_text()) - _cache(folder)
            found.append(max(most - now, 0))
    return min(found)


def _cache(folder: Path) -> int:
    """Bytes of a group that the kernel gives back when somebody needs them."""
    names = ("total_inactive_file", "inactive_file")  # of version 1 with its children, version 2
    lines = (folder / "memory.stat").read_text().splitlines()
    found = dict(line.split() for line in lines)
    return int(next((found[name] for name in names if name in found), 0))


def _available() -> int:
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


@cache
def _groups() -> tuple[tuple[Path, str, str], ...]:
    """The memory control groups that this process is in, and those above: folder, the file of the
    limit, the file of the use. cgroups(7); both versions are looked at where they usually are.
    """
    found: list[tuple[Path, str, str]] = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not controllers:
            names = ("memory.max", "memory.current")
        folder = top / path.lstrip("/")
        # In a container its own group may be mounted as the top.
        for one in (folder, *folder.parents):
            if one.is_relative_to(top) and (one / names[0]).exists():
                found.append((one, *names))
    return tuple(found)


def ready(wanted: int, workers: int) -> tuple[int, int]:
    """How many systems one of so many processes may have waiting: of one kind, and of all kinds.

    `wanted` is what the user allows of one kind. 0 where memory is short.
    """
    room = min(free_memory() // SHARE // IDLE, _MOST) // workers
    one = min(wanted, _PER_CORE * cores())
    one = max(1, one // workers) if one else 0
    return min(one, room), min(max(one, room), 4 * one)


def starters(workers: int) -> int:
    """Threads of this process that start systems ahead: one, or two where cores are left over."""
    return 2 if workers == 1 and cores() > 3 else 1


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[bool]:
    """Whether this process may start a system ahead now: all of a user's processes together have
    one core less to do so than there are. Files in `folder` are the turns; they stay.
    """
    import fcntl

    for number in range(max(1, cores() - 1)):
        path = folder / f"starter-{number}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                yield True
            finally:
                # Not by closing alone: a child that was forked meanwhile has the file as well.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            return
        finally:
            os.close(descriptor)
    yield False
