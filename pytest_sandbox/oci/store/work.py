"""Work in progress: a folder of its own, and what a sweep must leave alone until it is done.

Each piece of work holds a lock on its file in leases/ as long as its process lives. So what a
killed process left is told from what is being made, whatever became of its pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.store.files import names

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_sandbox.oci.store.locks import Locks

_GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS
_SET_FLAGS: Final = 0x40086602  # FS_IOC_SETFLAGS
_TOP_FOLDER: Final = 0x20000  # FS_TOPDIR_FL


class Work:
    """A piece of work; `folder` is its own, on the store's file system. A context manager."""

    def __init__(self, leases: Path, temporary: Path, trash: Path, locks: Locks) -> None:
        self._locks = locks
        self._trash = trash
        name = os.urandom(8).hex()
        self.folder = temporary / name
        self._lease = leases / name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        with locks.references():
            self._descriptor = os.open(self._lease, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self.folder.mkdir(mode=0o700)
        _spread(self.folder)

    def protect(self, *, layers: Iterable[str] = (), blobs: Iterable[str] = ()) -> None:
        """Keep layers and blobs, present or to come, from every sweep until the work is done.

        What is looked for after this call, and found, stays.
        """
        lines = [f"layer {key}\n" for key in layers] + [f"blob {digest}\n" for digest in blobs]
        with self._locks.references():
            os.write(self._descriptor, "".join(lines).encode())

    def close(self) -> None:
        """The end, good or bad: what is left in the folder is thrown away."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            with os.scandir(self.folder) as found:
                for entry in found:
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)  # noqa: PTH108
            self.folder.rmdir()  # folders of other owners are the trash's
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(self._trash / f"work.{self.folder.name}")
        with contextlib.suppress(FileNotFoundError):
            self._lease.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _spread(folder: Path) -> None:
    """Have each folder below begin in a part of the disk of its own, where the file system can
    (ext4: chattr +T).

    Else a layer would come where others were just removed, and without a journal ext4 looks at each
    inode of those again for every file that is made: 3,000 files take seconds then.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = bytearray(8)
            fcntl.ioctl(descriptor, _GET_FLAGS, flags)
            wanted = int.from_bytes(flags, sys.byteorder) | _TOP_FOLDER
            fcntl.ioctl(descriptor, _SET_FLAGS, wanted.to_bytes(8, sys.byteorder))
        finally:
            os.close(descriptor)


def living(leases: Path) -> tuple[set[str], set[str], list[str]]:
    """Layer keys and blob digests that living work protects, and the names of dead work.

    Call it with Locks.references(sweep=True) held: no work begins meanwhile.
    """
    layers: set[str] = set()
    blobs: set[str] = set()
    dead: list[str] = []
    for name in names(leases):
        try:
            descriptor = os.open(leases / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "rb") as file:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                for line in file.read().decode("ascii", "replace").splitlines():
                    kind, _, what = line.partition(" ")
                    (layers if kind == "layer" else blobs).add(what)
            else:
                dead.append(name)
    return layers, blobs, dead
