"""Files in and out of a tree.

The tree may belong to a sandbox that runs: nothing in it is trusted, every path is confined to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci.layers import trees
from pytest_sandbox.oci.layers.apply import Applied, Applier
from pytest_sandbox.oci.layers.decompress import Unpacked
from pytest_sandbox.oci.layers.diff import TreeWriter
from pytest_sandbox.oci.layers.folders import Folder, Folders
from pytest_sandbox.oci.layers.pack import Packer
from pytest_sandbox.oci.layers.reader import Reader
from pytest_sandbox.oci.layers.root import open_in_root, tidy
from pytest_sandbox.oci.layers.unpack import own_ids
from pytest_sandbox.oci.layers.writer import END

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds


def put(stream: int, root: int, into: str | bytes, bounds: Bounds) -> Applied:
    """Unpack an archive below a folder that is there. Links in it stay inside of the root.

    Its own root (`.`), if it is listed, gives the folder mode, owner, attributes and times; names
    that begin with `.wh.` mean nothing here. Raises OSError (ENOENT, ENOTDIR) for `into`,
    InvalidImage for the archive.
    """
    path = tidy(os.fsencode(into))
    _must_be_folder(root, into)
    source = Unpacked(stream, bounds, name="the archive")
    try:
        reader = Reader(source, bounds, name="the archive")
        prefix = path + b"/" if path else b""
        applier = Applier(root, reader, bounds, ids=own_ids(), whiteouts=False, prefix=prefix)
        return applier.apply()
    finally:
        source.close()


def _must_be_folder(root: int, path: str | bytes) -> None:
    os.close(open_in_root(root, path, os.O_PATH | os.O_DIRECTORY))


def get(stream: int, root: int, path: str | bytes, bounds: Bounds) -> int:
    """Write a file, or a folder with all that is in it, as an archive; the number of its members.

    Their names begin with the path's last one (`.` for the root). A link at the path's end is not
    followed, unless it ends with a slash. Raises OSError (ENOENT) and SandboxError.
    """
    text = os.fsencode(path)
    packer = Packer(stream)
    folders = Folders(root)
    try:
        folder, name = _last(folders, text)
        node = trees.look(folder.descriptor, name, name)
        try:
            writer = TreeWriter(packer, bounds, layer=False)
            writer.add(node)
            if node.is_folder:
                below = TreeWriter(packer, bounds, layer=False, prefix=name + b"/")
                for found in trees.walk(node.descriptor, most=bounds.path):
                    with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                        below.add(found)
                writer.entries += below.entries
        finally:
            if node.descriptor >= 0:
                os.close(node.descriptor)
        packer.put(END)
        packer.finish()
        return writer.entries
    finally:
        folders.close()
        packer.close()


def look_at(root: int, path: str | bytes) -> dict[str, Any]:
    """What one file is: `name`, `mode` (st_mode), `uid`, `gid`, `size`, `mtime` (ns), `link` (its
    text, for symbolic links, which are not followed at the path's end). Raises OSError (ENOENT).
    """
    folders = Folders(root)
    try:
        folder, name = _last(folders, os.fsencode(path))
        status = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        link = b""
        if stat.S_ISLNK(status.st_mode):
            link = os.readlink(name, dir_fd=folder.descriptor)
    finally:
        folders.close()
    return {
        "name": os.fsdecode(name),
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "mtime": status.st_mtime_ns,
        "link": os.fsdecode(link),
    }


def _last(folders: Folders, path: bytes) -> tuple[Folder, bytes]:
    """The folder that holds a path's last name, and that name; (root, `.`) for the root."""
    whole = tidy(path)
    parent, _, name = whole.rpartition(b"/")
    if not name or name == b".." or path.endswith((b"/", b"/.")):
        folder = folders.walk(whole, make=False)
        if folder is not None and folder.path:
            parent, _, name = folder.path.rpartition(b"/")
            folder = folders.walk(parent, make=False)
        else:
            name = b"."
    else:
        folder = folders.walk(parent, make=False)
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
    return folder, name
