"""What the upper folder of an overlay changes of the view below it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_sandbox.oci.layers import trees, xattrs
from pytest_sandbox.oci.layers.decompress import BLOCK
from pytest_sandbox.oci.layers.folders import Folder, Folders

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds
    from pytest_sandbox.oci.layers.trees import Node

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Changed(NamedTuple):
    """Absolute paths, sorted. A removed folder stands for all that was in it."""

    added: list[str]
    changed: list[str]
    removed: list[str]


def changes(upper: int, lower: int, bounds: Bounds) -> Changed:
    """What the upper folder of an overlay changes of the view below it (two open folders).

    A folder counts as changed when its own mode or owner is another one. Raises OSError.
    """
    found = Changed([], [], [])
    folders = Folders(lower)
    hidden: list[bytes] = []  # upper folders that show nothing of the view below
    alone: bytes | None = None  # an upper folder that the view below does not have
    try:
        if xattrs.is_opaque(upper):
            found.removed.extend(_hidden(upper, lower, b""))
        for node in trees.walk(upper, most=bounds.path):
            while hidden and not node.path.startswith(hidden[-1] + b"/"):
                hidden.pop()
            text = "/" + os.fsdecode(node.path)
            if alone is not None and node.path.startswith(alone):
                found.added.extend([] if node.is_whiteout else [text])
                continue
            alone = None
            parent, _, name = node.path.rpartition(b"/")
            folder = folders.walk_plain(parent)
            old = None if folder is None else _look(folder, name)
            if node.is_whiteout:
                if old is not None:
                    found.removed.append(text)
                continue
            if old is None:
                found.added.append(text)
                alone = node.path + b"/" if node.is_folder else None
                continue
            if _differs(node, old, folder, name):
                found.changed.append(text)
            if node.is_folder:
                inside = folders.walk_plain(node.path)
                if inside is not None and (hidden or xattrs.is_opaque(node.descriptor)):
                    hidden.append(node.path)
                    found.removed.extend(_hidden(node.descriptor, inside.descriptor, node.path))
    finally:
        folders.close()
    for paths in found:
        paths.sort()
    return found


def _look(folder: Folder, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _hidden(upper: int, lower: int, path: bytes) -> list[str]:
    """What an opaque folder hides of the one below it."""
    gone = set(trees.names(lower)) - set(trees.names(upper))
    start = "/" + os.fsdecode(path) + "/" if path else "/"
    return [start + os.fsdecode(name) for name in gone]


def _differs(node: Node, old: os.stat_result, folder: Folder | None, name: bytes) -> bool:
    new = node.status
    if new.st_mode != old.st_mode or (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        return True
    if node.is_folder or folder is None:
        return False  # its time is another one whenever something in it is
    if (new.st_mtime_ns, new.st_size, new.st_rdev) != (old.st_mtime_ns, old.st_size, old.st_rdev):
        return True
    if node.is_link:
        mine = os.readlink(node.name, dir_fd=node.parent)
        return mine != os.readlink(name, dir_fd=folder.descriptor)
    theirs = b"/proc/self/fd/%d/%s" % (folder.descriptor, name)
    if xattrs.read(node.handle()) != xattrs.read(theirs):
        return True
    return node.is_file and not _same_content(node, folder, name)


def _same_content(node: Node, folder: Folder, name: bytes) -> bool:
    """Of two files that look alike: one was opened for writing, or its time was set back."""
    mine = os.open(node.name, _READ, dir_fd=node.parent)
    try:
        theirs = os.open(name, _READ, dir_fd=folder.descriptor)
        try:
            while block := os.read(mine, BLOCK):
                if os.read(theirs, len(block)) != block:
                    return False
            return not os.read(theirs, 1)
        finally:
            os.close(theirs)
    finally:
        os.close(mine)
