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
    touched = {path for upper in uppers for path in _walk(upper, "")}
    hidden: set[str] = set()
    for path in touched:
        if _is_folder(below, path) and _is_folder(now, path):
            gone = set(_names(below, path)) - set(_names(now, path))
            hidden.update(f"{path}/{name}" for name in gone)
    for path in sorted(touched | hidden):
        old, new = _look(below, path), _look(now, path)
        if old is None and new is not None:
            found["added"].append(path)
        elif old is not None and new is None:
            if not any(path.startswith(f"{above}/") for above in found["removed"]):
                found["removed"].append(path)
        elif old is not None and new is not None and _differs(old, new):
            found["changed"].append(path)
    return found


def _walk(folder: int, path: str) -> Iterator[str]:
    """Every path of an upper folder, absolute; its root is none of them."""
    for name in _names(folder, path):
        inner = f"{path}/{name}"
        yield inner
        if _is_folder(folder, inner):
            yield from _walk(folder, inner)


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


def _is_folder(folder: int, path: str) -> bool:
    found = _look(folder, path)
    return found is not None and stat.S_ISDIR(found.st_mode)


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
