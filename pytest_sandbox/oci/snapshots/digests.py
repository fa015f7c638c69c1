"""One digest of a whole tree: equal for trees that a program could not tell apart."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.layers import xattrs
from pytest_sandbox.oci.snapshots.overlay import reopen

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS


def tree_digest(folder: int, *, times: bool = True) -> str:
    """Names, types, modes, owners, contents, link targets, hard links, extended attributes and
    (with `times`) modification times of everything in an open folder, and of itself.
    """
    top = reopen(folder)
    digest = hashlib.sha256()
    seen: dict[tuple[int, int], bytes] = {}
    todo = [b"."]
    try:
        while todo:
            path = todo.pop()
            at = linux.openat2(top, path, _FOLDER, resolve=_INSIDE)
            try:
                _note(digest, path, os.fstat(at), xattrs.read(at), times=times)
                folders = []
                for name in sorted(map(os.fsencode, os.listdir(at))):  # noqa: PTH208
                    below = name if path == b"." else path + b"/" + name
                    found = os.lstat(name, dir_fd=at)
                    if stat.S_ISDIR(found.st_mode):
                        folders.append(below)
                        continue
                    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                        digest.update(b"whiteout " + below)  # owner and time are accidents
                        continue
                    if found.st_nlink > 1:
                        first = seen.setdefault((found.st_dev, found.st_ino), below)
                        # A file whose other names are outside of the tree has one name here.
                        digest.update(b"" if first == below else b"links to " + first)
                    marks = xattrs.read(b"/proc/self/fd/%d/%s" % (at, name))
                    _note(digest, below, found, marks, times=times)
                    digest.update(_content(at, name, found))
                todo += reversed(folders)
            finally:
                os.close(at)
    finally:
        os.close(top)
    return digest.hexdigest()


def _note(
    digest: Any, path: bytes, found: os.stat_result, marks: dict[str, bytes], *, times: bool
) -> None:
    when = found.st_mtime_ns if times else 0
    marks = {name: mark for name, mark in marks.items() if "overlay" not in name}
    shown = (path, found.st_mode, found.st_uid, found.st_gid, when, sorted(marks.items()))
    digest.update(repr(shown).encode())


def _content(at: int, name: bytes, found: os.stat_result) -> bytes:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(name, dir_fd=at)
    if not stat.S_ISREG(found.st_mode):
        return str(found.st_rdev).encode()
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
