"""Makes layers: from the upper folder of an overlay, or from a whole tree (image-spec, layer.md).

The same tree gives the same bytes: names in the order of their bytes, a folder before what is in
it, the first of several hard links as the file.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Phase, SandboxError
from pytest_sandbox.oci.layers import members, trees, xattrs
from pytest_sandbox.oci.layers.apply import OPAQUE, WHITEOUT
from pytest_sandbox.oci.layers.decompress import BLOCK
from pytest_sandbox.oci.layers.members import Member
from pytest_sandbox.oci.layers.writer import END, header, padding

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds
    from pytest_sandbox.oci.layers.pack import Packer
    from pytest_sandbox.oci.layers.trees import Node

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_KINDS: Final = {
    stat.S_IFREG: members.FILE,
    stat.S_IFLNK: members.SYMLINK,
    stat.S_IFCHR: members.CHAR,
    stat.S_IFBLK: members.BLOCK_DEVICE,
    stat.S_IFDIR: members.FOLDER,
    stat.S_IFIFO: members.FIFO,
}


def write_layer(root: int, packer: Packer, bounds: Bounds, *, overlay: bool) -> int:
    """Write the tree of an open folder as a layer; the number of sockets, which are left out.

    `overlay`: it is the upper folder of an overlay; its whiteouts and opaque folders become those
    of layers. Raises SandboxError for what no layer can say, or is over the bounds.
    """
    writer = TreeWriter(packer, bounds, overlay=overlay)
    status = os.fstat(root)
    node = trees.Node(root, b".", b".", status, root)
    writer.add(node)
    for below in trees.walk(root, most=bounds.path):
        writer.add(below)
    packer.put(END)
    return writer.sockets


class TreeWriter:
    """Writes files of one tree as members of an archive. `prefix` stands in front of their paths.

    `layer` off: it is a plain archive, where `.wh.` means nothing. `sockets` counts those that are
    left out, `entries` all that were written.
    """

    def __init__(
        self,
        packer: Packer,
        bounds: Bounds,
        *,
        overlay: bool = False,
        layer: bool = True,
        prefix: bytes = b"",
    ) -> None:
        self.sockets = 0
        self.entries = 0
        self._packer = packer
        self._bounds = bounds
        self._overlay = overlay
        self._layer = layer
        self._prefix = prefix
        self._links: dict[tuple[int, int], bytes] = {}

    def add(self, node: Node) -> None:
        """Write one file. Raises SandboxError and OSError."""
        self.entries += 1
        if self.entries > self._bounds.entries:
            raise _unfit(node, f"the tree has more than {self._bounds.entries} files")
        path = self._prefix + node.path
        status = node.status
        if self._overlay and node.is_whiteout:
            folder, slash, name = path.rpartition(b"/")
            self._put(Member(folder + slash + WHITEOUT + name, members.FILE, mode=0))
            return
        if self._layer and node.name.startswith(WHITEOUT):
            raise _unfit(node, "its name begins with .wh., which marks removed files in layers")
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            self.sockets += 1
            return
        member = Member(
            path,
            kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=status.st_mtime_ns,
        )
        if status.st_nlink > 1 and kind != members.FOLDER:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                member.kind, member.link = members.LINK, first
                self._put(member)
                return
        if kind == members.FILE:
            self._file(node, member)
        elif kind == members.FOLDER:
            member.name += b"/"
            opaque = self._attributes(node, member, node.descriptor)
            self._put(member)
            if opaque:
                self._put(Member(path + b"/" + OPAQUE, members.FILE, mode=0))
        else:
            if kind == members.SYMLINK:
                member.link = os.readlink(node.name, dir_fd=node.parent)
            self._attributes(node, member, node.handle())
            number = 0 if kind == members.FIFO else status.st_rdev
            self._put(member, (os.major(number), os.minor(number)))

    def _file(self, node: Node, member: Member) -> None:
        descriptor = os.open(node.name, _READ, dir_fd=node.parent)
        try:
            self._attributes(node, member, descriptor)
            member.size = node.status.st_size
            if self._packer.size + member.size > self._bounds.layer_bytes:
                raise _unfit(node, f"the layer grows over {self._bounds.layer_bytes} bytes")
            self._put(member)
            left = member.size
            while left:
                # what a running process cuts off meanwhile becomes zeros
                block = os.read(descriptor, min(left, BLOCK)) or bytes(min(left, BLOCK))
                self._packer.put(block)
                left -= len(block)
            if tail := padding(member.size):
                self._packer.put(tail)
        finally:
            os.close(descriptor)

    def _attributes(self, node: Node, member: Member, target: int | bytes) -> bool:
        """Read its attributes; whether it is an opaque folder."""
        found, overlay = xattrs.split(target)
        if found:
            member.xattrs = found
        if not self._overlay or not overlay:
            return False
        for name in ("redirect", "metacopy", "whiteout", "whiteouts"):
            if name in overlay:
                raise _unfit(node, f"the overlay marked it as {name}: no layer can say that")
        mark = overlay.get("opaque", b"")
        if mark not in {b"", b"y"}:
            raise _unfit(node, f"the overlay marked it as opaque={mark!r}: no layer can say that")
        return mark == b"y"

    def _put(self, member: Member, device: tuple[int, int] = (0, 0)) -> None:
        self._packer.put(header(member, device))


def _unfit(node: Node, what: str) -> SandboxError:
    path = "/" + os.fsdecode(node.path)
    return SandboxError(f"{path!r} cannot become part of a layer: {what}", phase=Phase.IMAGE)
