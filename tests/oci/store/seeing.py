"""What is in the layers of a store, seen from outside."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def listing(folder):
    """The names in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def tree(folder):
    """Relative path -> what it is: bytes of files, target of links, None for folders."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                value = f"-> {path.readlink()}"
            elif stat.S_ISDIR(status.st_mode):
                value = None
            elif stat.S_ISREG(status.st_mode):
                value = path.read_bytes()
            else:
                value = "whiteout" if status.st_rdev == 0 else "device"
            found[str(path.relative_to(folder))] = value
    return found


def diffs(store, image):
    """The trees of an image's layers, bottom first."""
    return [tree(store.layer(key).diff) for key in image.keys]


def left_over(store):
    """Everything that work in progress, good or bad, may have left in a store."""
    found = {name: listing(store.root / name) for name in ("tmp", "leases", "trash")}
    return {name: names for name, names in found.items() if names}
