"""Completes the upper folder of a layer that was applied ahead of the layers below it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci.layers.ahead import OPAQUE_MARK, Pending
from pytest_sandbox.oci.layers.folders import Folder, Folders
from pytest_sandbox.oci.layers.unpack import copy_status
from pytest_sandbox.oci.layers.xattrs import is_opaque

if TYPE_CHECKING:
    from collections.abc import Mapping


def settle(upper: int, lower: int, like: int, pending: Mapping[str, Any]) -> str:
    """Do what is pending (see ahead.Pending) in the upper folder, for the view `lower` below it.

    `like` is the diff folder of the layer below: the root is as there, unless the layer lists it.
    Gives nothing, or the reason why the layer must be applied again, on top of the lower ones; the
    upper folder is then to be thrown away. Raises OSError.
    """
    work = _Settling(Folders(upper), Folders(lower))
    mask = os.umask(0)
    try:
        reason = work.run(Pending(**pending))
    finally:
        os.umask(mask)
        work.close()
    if not reason and not pending["root"]:
        copy_status(like, upper)
    return reason


class _Settling:
    def __init__(self, upper: Folders, lower: Folders) -> None:
        self._upper = upper
        self._lower = lower

    def close(self) -> None:
        self._upper.close()
        self._lower.close()

    def run(self, pending: Pending) -> str:
        for path in pending.trusted:
            mode = self._below(os.fsencode(path))
            if mode and not stat.S_ISDIR(mode):
                return f"/{path} is no folder in the layers below"
        for path in pending.unlisted:
            self._take_over(os.fsencode(path))
        for path in pending.gone:
            self._white_out(os.fsencode(path))
        for path in pending.emptied:
            self._empty(os.fsencode(path))
        return ""

    def _below(self, path: bytes) -> int:
        """The mode of a file of the layers below; 0 where there is none."""
        parent, _, name = path.rpartition(b"/")
        folder = self._lower.walk_plain(parent)
        if folder is None:
            return 0
        try:
            return os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return 0

    def _take_over(self, path: bytes) -> None:
        """Make an unlisted folder what it is below."""
        folder, below = self._upper.walk_plain(path), self._lower.walk_plain(path)
        if folder is not None and below is not None:
            _dress_like(folder, below)

    def _white_out(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        if not self._below(path) or not self._reach(parent):
            return
        folder = self._upper.walk_plain(parent)
        if folder is None:
            return
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=folder.descriptor)
        except FileExistsError:
            return  # the layer has put something else there
        folder.touched = True

    def _empty(self, path: bytes) -> None:
        if not stat.S_ISDIR(self._below(path)) or not self._reach(path):
            return
        folder = self._upper.walk_plain(path)
        if folder is not None:
            os.setxattr(folder.descriptor, OPAQUE_MARK, b"y")

    def _reach(self, path: bytes) -> bool:
        """Have a folder in the upper folder, as it is below; False if nothing below shows there."""
        folder = self._upper.root
        for name in path.split(b"/") if path else []:
            found = self._upper.walk_plain(folder.below(name))
            if found is None:
                below = self._lower.walk_plain(folder.below(name))
                if below is None:
                    return False
                try:
                    found = self._upper.make(folder, name)
                except FileExistsError:
                    return False  # a file, or a whiteout
                _dress_like(found, below)
            folder = found
            if is_opaque(folder.descriptor):
                return False
        return True


def _dress_like(folder: Folder, below: Folder) -> None:
    copy_status(below.descriptor, folder.descriptor)
    folder.atime, folder.mtime = below.atime, below.mtime
    folder.touched = True
