"""Applies a packed layer, as it comes from a file or a pipe, to an open folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.layers import xattrs
from pytest_sandbox.oci.layers.apply import Applied, Applier, Ids
from pytest_sandbox.oci.layers.decompress import Unpacked
from pytest_sandbox.oci.layers.reader import Reader

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds

_ALL: int = (1 << 32) - 1


class Layer(NamedTuple):
    """A layer that was applied: its diff id, unpacked and packed size, and what came of it."""

    diff_id: str
    size: int
    packed: int
    applied: Applied

    def told(self) -> dict[str, Any]:
        """All of it as JSON."""
        told = {"diff_id": self.diff_id, "size": self.size, "packed": self.packed}
        return told | self.applied._asdict()


def own_ids() -> Ids:
    """The ids that this process can give to files: those that its user namespace maps, from 0."""
    return Ids(_mapped("uid_map"), _mapped("gid_map"))


def _mapped(name: str) -> int:
    end = 0
    for line in sorted(Path("/proc/self", name).read_text().splitlines(), key=_first):
        inside, _, size = (int(word) for word in line.split())
        if inside == end:
            end = min(inside + size, _ALL)
    return end


def _first(line: str) -> int:
    return int(line.split(maxsplit=1)[0])


class Opened:
    """A layer's stream that is being read."""

    def __init__(self, stream: int, bounds: Bounds, layer: str) -> None:
        self._layer = layer
        self._source = Unpacked(stream, bounds, name=layer)
        self.reader = Reader(self._source, bounds, name=layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def finish(self, diff_id: str | None, applied: Applied) -> Layer:
        """What was applied. Raises InvalidImage for another diff id than this."""
        source = self._source
        if diff_id is not None and source.digest != diff_id:
            found = f"{self._layer}: its unpacked content has the digest {source.digest}"
            what = f"{found}, not {diff_id}"
            raise InvalidImage(what, next_step="do not use this image; ask who serves it")
        return Layer(source.digest, source.size, source.packed, applied)


def apply_layer(
    stream: int,
    root: int,
    bounds: Bounds,
    *,
    layer: str = "layer",
    diff_id: str | None = None,
    ids: Ids | None = None,
    like: int | None = None,
    first: bool = False,
) -> Layer:
    """Apply the layer that comes from `stream` to the tree in `root`.

    `root` takes mode, owner, attributes and times of the folder `like` first; that of an image's
    `first` layer begins with 0755 and the time 0. `layer` is the name
    in messages; `ids` are those that files may have (None: all that this process can give). Raises
    InvalidImage; the tree is then in pieces, and to be thrown away.
    """
    if like is not None:
        copy_status(like, root)
    with os.scandir(root) as entries:
        fresh = like is None and next(entries, None) is None
    if first:
        os.fchmod(root, 0o755)
        os.utime(root, ns=(0, 0))
    with Opened(stream, bounds, layer) as opened:
        applier = Applier(root, opened.reader, bounds, ids=ids or own_ids(), fresh=fresh)
        return opened.finish(diff_id, applier.apply())


def copy_status(source: int, target: int) -> None:
    """Give a file or folder mode, owner, attributes and times of another one (descriptors)."""
    status = os.fstat(source)
    wanted = xattrs.read(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, status.st_mode & 0o7777)
    xattrs.clear(target, wanted)
    xattrs.write(target, wanted)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
