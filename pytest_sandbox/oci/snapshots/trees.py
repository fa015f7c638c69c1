"""A whole tree copied into an empty folder, by descriptors, with everything that a layer can say.

Nothing else may change either tree meanwhile; links are copied, never followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final, Literal

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.layers import xattrs
from pytest_sandbox.oci.snapshots.overlay import copy_root, reopen

if TYPE_CHECKING:
    from collections.abc import Iterator

How = Literal["copy", "reflink", "hardlink"]

_FICLONE: Final = 0x40049409
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
_CHUNK: Final = 1 << 20
_NO_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


def copy_tree(source: int, target: int, how: How = "copy") -> int:
    """Copy what is in the folder `source` into the empty folder `target`, attributes too.

    `reflink` shares the data until one side is written to, `hardlink` the files themselves: then
    nothing may ever be written to either. Returns the number of entries. Raises OSError.
    """
    source, target = reopen(source), reopen(target)
    try:
        return _Copy(source, target, how).run()
    finally:
        os.close(source)
        os.close(target)


class _Copy:
    def __init__(self, source: int, target: int, how: How) -> None:
        self._source = source
        self._target = target
        self._how = how
        self._links: dict[tuple[int, int], bytes] = {}
        self._count = 0

    def run(self) -> int:
        todo: list[tuple[bytes, bool]] = [(b".", False)]
        while todo:
            path, filled = todo.pop()
            at = linux.openat2(self._source, path, _FOLDER, resolve=_INSIDE)
            to = linux.openat2(self._target, path, _FOLDER, resolve=_INSIDE)
            try:
                if filled:  # what was made in it has changed its times
                    copy_root(at, to)
                    continue
                todo.append((path, True))
                for name, found in _entries(at):
                    self._count += 1
                    if stat.S_ISDIR(found.st_mode):
                        os.mkdir(name, 0o700, dir_fd=to)
                        todo.append((_join(path, name), False))
                    else:
                        self._file(at, to, path, name, found)
            finally:
                os.close(at)
                os.close(to)
        return self._count

    def _file(self, at: int, to: int, path: bytes, name: bytes, found: os.stat_result) -> None:
        if self._how == "hardlink":
            os.link(name, name, src_dir_fd=at, dst_dir_fd=to, follow_symlinks=False)
            return
        if found.st_nlink > 1:
            first = self._links.setdefault((found.st_dev, found.st_ino), _join(path, name))
            if first != _join(path, name):
                self._link(first, to, name)
                return
        if stat.S_ISREG(found.st_mode):
            _regular(at, to, name, found, clone=self._how == "reflink")
            return
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=at), name, dir_fd=to)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=to)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=to, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=to)
        _xattrs_by_path(at, to, name)
        times = (found.st_atime_ns, found.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=to, follow_symlinks=False)

    def _link(self, first: bytes, to: int, name: bytes) -> None:
        folder, _, last = first.rpartition(b"/")
        at = linux.openat2(self._target, folder or b".", _FOLDER, resolve=_INSIDE)
        try:
            os.link(last, name, src_dir_fd=at, dst_dir_fd=to, follow_symlinks=False)
        finally:
            os.close(at)


def _entries(folder: int) -> Iterator[tuple[bytes, os.stat_result]]:
    for name in map(os.fsencode, os.listdir(folder)):
        yield name, os.lstat(name, dir_fd=folder)


def _join(path: bytes, name: bytes) -> bytes:
    return name if path == b"." else path + b"/" + name


def _xattrs_by_path(at: int, to: int, name: bytes) -> None:
    """Of what cannot be opened; the folder's own entry in /proc leads to it, not the link."""
    wanted = xattrs.read(b"/proc/self/fd/%d/%s" % (at, name))
    if wanted:
        xattrs.write(b"/proc/self/fd/%d/%s" % (to, name), wanted)


def _regular(at: int, to: int, name: bytes, found: os.stat_result, *, clone: bool) -> None:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    source = os.open(name, os.O_RDONLY | flags, dir_fd=at)
    try:
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=to)
        try:
            if clone:
                fcntl.ioctl(target, _FICLONE, source)
            elif found.st_size:
                _data(source, target, found)
            # chown clears the setuid bit and file capabilities: they come after it.
            os.fchown(target, found.st_uid, found.st_gid)
            xattrs.write(target, xattrs.read(source))
            os.fchmod(target, stat.S_IMODE(found.st_mode))
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _data(source: int, target: int, found: os.stat_result) -> None:
    """Copy the data; holes stay holes."""
    if found.st_blocks * 512 >= found.st_size:
        _range(source, target, 0, found.st_size)
        return
    os.ftruncate(target, found.st_size)
    start = 0
    while start < found.st_size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as wrong:
            if wrong.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _range(source, target, start, end)
        start = end


def _range(source: int, target: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        if in_kernel:
            try:
                done = os.copy_file_range(source, target, end - start, start, start)
            except OSError as wrong:
                if wrong.errno not in _NO_RANGE:
                    raise
                in_kernel = False
                continue
        else:
            data = os.pread(source, min(_CHUNK, end - start), start)
            done = os.pwrite(target, data, start) if data else 0
        if not done:
            raise OSError(errno.EIO, "a file became shorter while it was copied")
        start += done
