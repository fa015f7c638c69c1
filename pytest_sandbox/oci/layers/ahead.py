"""Applies a layer before those below it are there: straight to its upper folder, for an overlay.

What the layer brings is the same whatever lies below. What is not is noted: folders that it
changes without listing them, whiteouts, and folders that must not be links below. `settle`
completes the upper folder from that. A layer that cannot be told without the lower ones, as with
a hard link to one of their files, is given up: it is applied again on top of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.oci.layers.apply import OPAQUE, Applier, Ids
from pytest_sandbox.oci.layers.unpack import Opened, own_ids

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds
    from pytest_sandbox.oci.layers.folders import Folder
    from pytest_sandbox.oci.layers.members import Member
    from pytest_sandbox.oci.layers.reader import Reader

OPAQUE_MARK: Final = "user.overlay.opaque"
_MOST: Final = 1 << 20
"""So many bytes of paths are noted at most."""


class Redo(Exception):
    """The layer cannot be told without those below it; the text says why."""


class Pending(NamedTuple):
    """What to do when the layers below are there. Paths have no leading slash, and no links in
    this layer.

    `trusted`: must be folders, or not be there at all. `unlisted`: take everything but their
    content from the layers below. `gone`: whiteouts. `emptied`: opaque folders that are not in the
    upper folder yet. `root`: whether the root is listed.
    """

    trusted: list[str]
    unlisted: list[str]
    gone: list[str]
    emptied: list[str]
    root: bool


class AheadApplier(Applier):
    """Applies the members of one archive to a bare upper folder. Raises Redo too."""

    def __init__(self, root: int, reader: Reader, bounds: Bounds, *, ids: Ids) -> None:
        super().__init__(root, reader, bounds, ids=ids, fresh=True)
        self._trusted: set[bytes] = set()
        self._unlisted: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._emptied: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._root_listed = False
        self._noted = 0

    def pending(self) -> Pending:
        """What is left for settle."""
        return Pending(
            trusted=_sorted(self._trusted),
            unlisted=_sorted(self._unlisted),
            gone=_sorted(self._gone),
            emptied=_sorted(self._emptied),
            root=self._root_listed,
        )

    def _note(self, paths: set[bytes], path: bytes) -> None:
        if path in paths:
            return
        self._noted += len(path) + 64
        if self._noted > _MOST:
            msg = "too much of it depends on the layers below"
            raise Redo(msg)
        paths.add(path)

    def _hidden(self, path: bytes) -> bool:
        """Whether nothing of the layers below can show at a path, as things are now."""
        while path:
            path = path.rpartition(b"/")[0]
            if path in self._opaque or path in self._gone or path in self._emptied:
                return True
        return False

    def _trust(self, path: bytes) -> None:
        """A path is used as a folder, though this layer did not say that it is one."""
        if path and not self._hidden(path):
            self._note(self._trusted, path)

    def _made(self, folder: Folder) -> None:
        super()._made(folder)
        path = folder.path
        if self._hidden(path) or path in self._gone:
            self._begin(folder)
            return
        self._trust(path)
        self._note(self._unlisted, path)
        if path in self._emptied:
            self._close_off(folder)

    def _begin(self, folder: Folder) -> None:
        """A folder of this layer's own: what was whited out, or replaced, must not show in it."""
        if folder.path in self._gone or folder.path in self._emptied:
            self._close_off(folder)

    def _close_off(self, folder: Folder) -> None:
        os.setxattr(folder.descriptor, OPAQUE_MARK, b"y")
        self._note(self._opaque, folder.path)

    def _folder(self, member: Member, folder: Folder, base: bytes) -> None:
        super()._folder(member, folder, base)
        self._unlisted.discard(folder.below(base))

    def _root(self, member: Member) -> None:
        super()._root(member)
        self._root_listed = True

    def _remove(self, folder: Folder, base: bytes) -> None:
        super()._remove(folder, base)
        path = folder.below(base)
        below = path + b"/"
        for paths in (self._unlisted, self._opaque):
            paths -= {p for p in paths if p == path or p.startswith(below)}
        if not self._hidden(path):
            self._note(self._gone, path)

    def _no_target(self, member: Member) -> Exception:
        return Redo(str(super()._no_target(member)))

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        name = self._whiteout_name(base)
        folder, missing = self.folders.locate(parent)
        path = b"/".join([part for part in (folder.path, *missing) if part])
        for end in range(len(missing)):
            self._trust(b"/".join([part for part in (folder.path, *missing[: end + 1]) if part]))
        if base == OPAQUE:
            if not path:
                msg = "it empties the root"
                raise Redo(msg)
            if not missing:
                self._close_off(folder)
            elif not self._hidden(path) and path not in self._gone:
                self._note(self._emptied, path)
            return
        path = path + b"/" + name if path else name
        found = None if missing else self.folders.walk_plain(path)
        if found is not None:
            self._close_off(found)
        elif not self._hidden(path) and (missing or not self._is_there(folder, name)):
            self._note(self._gone, path)

    @staticmethod
    def _is_there(folder: Folder, name: bytes) -> bool:
        try:
            os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def _sorted(paths: set[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in sorted(paths)]


def apply_ahead(
    stream: int,
    root: int,
    bounds: Bounds,
    *,
    layer: str = "layer",
    diff_id: str | None = None,
    ids: Ids | None = None,
) -> dict[str, Any]:
    """Apply the layer that comes from `stream` to the empty upper folder `root`.

    Gives what `apply_layer` tells, and `pending` (for settle); or only `redo`, the reason why it
    must be applied on top of the layers below. Raises InvalidImage.
    """
    with Opened(stream, bounds, layer) as opened:
        applier = AheadApplier(root, opened.reader, bounds, ids=ids or own_ids())
        try:
            applied = applier.apply()
        except Redo as reason:
            return {"redo": str(reason)}
        told = opened.finish(diff_id, applied).told()
    return told | {"pending": applier.pending()._asdict()}
