"""The processes of one sandbox, as the host sees them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def members(first: int, top: int) -> list[int]:
    """Every process in the pid namespace of `first`, that one first.

    They are all below `top`, the supervisor: what a sandbox starts is below its first process, what
    the engine starts in it (an exec) is the supervisor's own child.
    """
    try:
        space = space_of(first)
    except OSError:
        return []
    return [first, *(pid for pid in spaces(top).get(space, ()) if pid != first)]


def spaces(top: int) -> dict[int, list[int]]:
    """Every process below `top`, by its pid namespace (see `space_of`)."""
    found: dict[int, list[int]] = {}
    todo = _children(top)
    while todo:
        pid = todo.pop()
        todo += _children(pid)
        with contextlib.suppress(OSError):
            found.setdefault(space_of(pid), []).append(pid)
    return found


def space_of(pid: int) -> int:
    """The number of a process's pid namespace. Raises OSError."""
    return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116


def tasks(pid: int) -> int:
    """The number of threads of a process; 0 for one that is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except OSError:
        return 0


def inner_pid(pid: int) -> int:
    """The pid that a process has inside its sandbox (NSpid of proc(5)); 0 for one that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            text = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
            found += [int(word) for word in text.split()]
    return found
