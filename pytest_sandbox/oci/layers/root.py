"""Opens paths of a tree whose content nobody trusts: confined to it, whatever its links say.

openat2(2) does it in the kernel; where that is missing or forbidden, names are walked by hand.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.layers.folders import MOST_LINKS, Folders

_CONFINED: Final = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
_MISSING: Final = frozenset({errno.ENOSYS, errno.EPERM})
_TRIES: Final = 32


def open_in_root(root: int, path: str | bytes, flags: int, *, follow: bool = True) -> int:
    """Open a path as if `root` were `/`: a descriptor, close-on-exec.

    `follow` off: a link at its end is not followed. A FIFO never blocks. New files are not made.
    Raises OSError, with the path.
    """
    path = os.fsencode(path)
    flags |= os.O_CLOEXEC
    if not flags & os.O_PATH:  # openat2 refuses it with more than O_DIRECTORY and O_NOFOLLOW
        flags |= os.O_NONBLOCK | os.O_NOCTTY
    if not follow:
        flags |= os.O_NOFOLLOW
    for _ in range(_TRIES):
        try:
            return linux.openat2(root, path or b".", flags, resolve=_CONFINED)
        except OSError as error:
            if error.errno == errno.EAGAIN:  # something was renamed meanwhile
                continue
            if error.errno not in _MISSING:
                raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
            break
    return open_by_hand(root, path, flags)


def open_by_hand(root: int, path: bytes, flags: int) -> int:
    """What open_in_root does, without openat2."""
    folders = Folders(root)
    try:
        for _ in range(MOST_LINKS):
            parent, _, name = path.rstrip(b"/").rpartition(b"/")
            if name in {b"", b".", b".."}:
                parent, name = parent + b"/" + name, b"."
            folder = folders.walk(tidy(parent), make=False)
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
            try:
                found = os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder.descriptor)
            except OSError as error:
                if error.errno not in {errno.ELOOP, errno.ENOTDIR} or flags & os.O_NOFOLLOW:
                    raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
            else:
                if flags & os.O_NOFOLLOW or not stat.S_ISLNK(os.fstat(found).st_mode):
                    return found
                os.close(found)  # O_PATH opens the link itself
            try:
                target = os.readlink(name, dir_fd=folder.descriptor)
            except OSError:
                text = os.strerror(errno.ENOTDIR)
                raise NotADirectoryError(errno.ENOTDIR, text, os.fsdecode(path)) from None
            path = target if target.startswith(b"/") else folder.path + b"/" + target
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
    finally:
        folders.close()


def tidy(path: bytes) -> bytes:
    """A path without a leading slash, `.` and empty names; `..` stays for who walks it."""
    return b"/".join(part for part in path.split(b"/") if part not in {b"", b"."})


def open_regular(root: int, path: str | bytes) -> int:
    """Open a regular file for reading, confined. Raises OSError (EINVAL: it is of another kind)."""
    descriptor = open_in_root(root, path, os.O_RDONLY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))


def read_regular(root: int, path: str | bytes, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes, confined.

    Raises OSError: EINVAL for another kind of file, EFBIG for a longer one.
    """
    with os.fdopen(open_regular(root, path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"longer than {most} bytes", os.fsdecode(path))
    return data
