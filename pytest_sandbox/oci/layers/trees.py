"""Walks trees by open folders, in the order of their names' bytes; links are never followed."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pytest_sandbox.oci.layers.folders import OPEN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator


class Node:
    """A file of a tree: `name` in the open folder `parent`, `path` from the tree's root.

    `descriptor` is open for folders, until the walk has left them; `enter` off keeps the walk out
    of this one.
    """

    __slots__ = ("descriptor", "enter", "name", "parent", "path", "status")

    def __init__(
        self, parent: int, name: bytes, path: bytes, status: os.stat_result, descriptor: int
    ) -> None:
        self.parent = parent
        self.name = name
        self.path = path
        self.status = status
        self.descriptor = descriptor
        self.enter = True

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)

    @property
    def is_whiteout(self) -> bool:
        """overlayfs's mark of a removed file: a character device 0:0."""
        return stat.S_ISCHR(self.status.st_mode) and self.status.st_rdev == 0

    def handle(self) -> bytes:
        """A path for calls that take no descriptors."""
        return b"/proc/self/fd/%d/%s" % (self.parent, self.name)


def names(folder: int) -> list[bytes]:
    """The names in an open folder, sorted."""
    return sorted(map(os.fsencode, os.listdir(folder)))


def walk(root: int, *, most: int) -> Iterator[Node]:
    """Everything below an open folder: a folder before what is in it.

    Raises OSError (ENAMETOOLONG) for paths of more than `most` bytes. What vanishes meanwhile is
    left out.
    """
    stack: list[tuple[int, bytes, list[bytes]]] = [(root, b"", names(root)[::-1])]
    try:
        while stack:
            folder, prefix, left = stack[-1]
            if not left:
                stack.pop()
                if stack:
                    os.close(folder)
                continue
            name = left.pop()
            path = prefix + name
            if len(path) > most:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:200])
            try:
                node = look(folder, name, path)
            except FileNotFoundError:
                continue
            if node.descriptor < 0:
                yield node
                continue
            stack.append((node.descriptor, path + b"/", []))
            yield node
            if node.enter:
                stack[-1][2].extend(names(node.descriptor)[::-1])
    finally:
        for folder, _, _ in stack[1:]:
            os.close(folder)


def look(folder: int, name: bytes, path: bytes) -> Node:
    """One file in an open folder; a folder comes open. Raises OSError."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    descriptor = -1
    if stat.S_ISDIR(status.st_mode):
        descriptor = os.open(name, OPEN_FOLDER, dir_fd=folder)
        status = os.fstat(descriptor)
    return Node(folder, name, path, status, descriptor)
