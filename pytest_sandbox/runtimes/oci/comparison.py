"""What several upper folders together change, by comparing the views with and without them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def compare(uppers: Iterable[int], below: int, now: int) -> dict[str, list[str]]:
    """`added`, `changed` and `removed`: absolute paths. Only what an upper folder holds is looked
    at, and what its folders hide. `below` and `now` are the two views, as open folders.

    A folder counts as changed for its own mode or owner. A removed folder stands for all in it.
    """
    found: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
    waiting = {path for upper in uppers for path in _walk(upper, "")}
    # Nothing is looked for in what is no folder; least of all through a link.
    folders_below, folders_now = {""}, {""}
    while waiting:
        hidden: set[str] = set()
        for path in sorted(waiting):  # a folder comes before what is in it
            above = path.rpartition("/")[0]
            old = _look(below, path) if above in folders_below else None
            new = _look(now, path) if above in folders_now else None
            if old is not None and stat.S_ISDIR(old.st_mode):
                folders_below.add(path)
            if new is not None and stat.S_ISDIR(new.st_mode):
                folders_now.add(path)
            if path in folders_below and path in folders_now:
                gone = set(_names(below, path)) - set(_names(now, path))
                hidden.update(f"{path}/{name}" for name in gone)
            if old is None and new is not None:
                found["added"].append(path)
            elif old is not None and new is None:
                found["removed"].append(path)
            elif old is not None and new is not None and _differs(old, new):
                found["changed"].append(path)
        waiting = hidden - waiting
    gone = set(found["removed"])
    found["removed"] = sorted(path for path in gone if not _below_one_of(path, gone))
    return found


def _below_one_of(path: str, folders: set[str]) -> bool:
    while path:
        path = path.rpartition("/")[0]
        if path in folders:
            return True
    return False


def _walk(folder: int, path: str) -> Iterator[str]:
    """Every path of an upper folder, absolute; its root is none of them."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(path.lstrip("/") or ".", flags, dir_fd=folder)
    try:
        with os.scandir(descriptor) as entries:
            inner = [(f"{path}/{e.name}", e.is_dir(follow_symlinks=False)) for e in entries]
    finally:
        os.close(descriptor)
    for name, is_folder in inner:
        yield name
        if is_folder:
            yield from _walk(folder, name)


def _names(folder: int, path: str) -> list[str]:
    descriptor = os.open(
        path.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder
    )
    try:
        return os.listdir(descriptor)  # noqa: PTH208
    finally:
        os.close(descriptor)


def _look(folder: int, path: str) -> os.stat_result | None:
    try:
        return os.stat(path.lstrip("/"), dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _differs(old: os.stat_result, new: os.stat_result) -> bool:
    if old.st_mode != new.st_mode or (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        return True
    if stat.S_ISDIR(old.st_mode):
        return False
    return (old.st_size, old.st_mtime_ns, old.st_rdev) != (
        new.st_size,
        new.st_mtime_ns,
        new.st_rdev,
    )
