"""Removes trees, by open folders; links are never followed."""

from __future__ import annotations

import os
from typing import Final

from pytest_sandbox.oci.layers.folders import OPEN_FOLDER

_DEEP: Final = 400
"""Folders deeper than this are moved up before they are emptied: each level holds a descriptor."""


def remove_tree(parent: int, name: str | bytes) -> None:
    """Remove a file, or a folder with all that is in it. Raises OSError (ENOENT: it is not there).

    Other file systems mounted below it are not looked for: removing them fails with EBUSY.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        pass
    else:
        return
    top = os.open(name, OPEN_FOLDER, dir_fd=parent)
    try:
        empty_tree(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def empty_tree(top: int) -> None:
    """Remove everything in an open folder, however deep. The descriptor stays the caller's."""
    stack: list[tuple[int, list[str], str]] = [(top, _unlink_files(top), "")]
    moved = 0
    try:
        while True:
            folder, names, own = stack[-1]
            if names:
                name = names.pop()
                if len(stack) > _DEEP and len(stack) % _DEEP == 1:
                    aside = f".moved-{moved}"
                    if _move_up(folder, name, top, aside):
                        moved += 1
                        stack[0][1].append(aside)
                        continue
                below = os.open(name, OPEN_FOLDER, dir_fd=folder)
                try:
                    inside = _unlink_files(below)
                except BaseException:
                    os.close(below)
                    raise
                stack.append((below, inside, name))
                continue
            if len(stack) == 1:
                return
            stack.pop()
            os.close(folder)
            os.rmdir(own, dir_fd=stack[-1][0])
    finally:
        for folder, _, _ in stack[1:]:
            os.close(folder)


def _unlink_files(folder: int) -> list[str]:
    """Remove what is no folder; the names of the folders."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=folder)
    return folders


def _move_up(folder: int, name: str, top: int, aside: str) -> bool:
    """Move a folder below `top`; False where the file system cannot (a lower one of overlayfs)."""
    try:
        os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=top)
    except OSError:
        return False
    return True
