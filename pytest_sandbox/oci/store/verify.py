"""Is the store what it says? Blobs are hashed again, and layers unpacked again and compared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageUnavailable, InvalidImage, SandboxError
from pytest_sandbox.oci.applying import apply_packed
from pytest_sandbox.oci.bounds import STORED
from pytest_sandbox.oci.store import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_sandbox.oci.images import Image, ImageLayer
    from pytest_sandbox.oci.store import Layer, Store

_JOBS: Final = "pytest_sandbox.oci.unpacking_jobs"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at: `damage` in words, none if all is well. `unproved` are layers whose files
    nothing can be held against: their archives were not kept.
    """

    damage: tuple[str, ...]
    blobs: int
    layers: int
    unproved: tuple[str, ...]


def verify(store: Store, images: Iterable[Image]) -> Verified:
    """Hold blobs to their digests, and the files of layers to their archives.

    What is damaged is set aside, so that the next pull or import brings it again. Raises
    SandboxError only where the host fails.
    """
    check = _Check(store)
    for image in images:
        check.image(image)
    store.empty_trash()
    unproved = tuple(sorted(check.unproved))
    return Verified(tuple(check.damage), len(check.blobs), len(check.layers), unproved)


class _Check:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.damage: list[str] = []
        self.blobs: set[str] = set()
        self.layers: set[str] = set()
        self.unproved: set[str] = set()
        self._bad: set[str] = set()

    def image(self, image: Image) -> None:
        name = image.reference.familiar
        digests = [image.config_digest, *([image.digest] if image.digest else [])]
        for digest in digests:
            self._blob(digest, name, needed=True)
        keys: list[str] = []
        for number, layer in enumerate(image.layers, 1):
            what = f"{name}, layer {number}"
            packed = layer.blob is not None and self._blob(layer.blob.digest, what)
            if layer.key not in self.layers:
                self.layers.add(layer.key)
                self._layer(layer, list(keys), what, packed=packed)
            keys.append(layer.key)

    def _blob(self, digest: str, what: str, *, needed: bool = False) -> bool:
        """Whether a blob is there and right."""
        if digest in self.blobs:
            return digest not in self._bad
        blobs = self._store.blobs
        if not blobs.has(digest):
            if needed:
                self.damage.append(f"{what}: the blob {digest} is missing")
            return False
        self.blobs.add(digest)
        try:
            blobs.check(digest)
        except InvalidImage as wrong:
            blobs.remove(digest)
            self._bad.add(digest)
            self.damage.append(f"{what}: {wrong.what}")
            return False
        except ImageUnavailable:  # removed meanwhile
            return False
        return True

    def _layer(self, layer: ImageLayer, lowers: list[str], what: str, *, packed: bool) -> None:
        there = self._store.layers.get(layer.key)
        if there is None:
            self.damage.append(f"{what}: its files are missing, or of another id map")
            return
        if layer.diff_id and there.diff_id and layer.diff_id != there.diff_id:
            self._set_aside(there, f"{what}: it is {there.diff_id}, not {layer.diff_id}")
            return
        if self._bad.intersection(lowers):
            self.unproved.add(what)  # what it changes cannot be told without what lies below
        elif not there.chain_id and there.diff_id:
            self._made_here(there, what)
        elif packed and layer.diff_id:
            self._pulled(layer, there, lowers, what)
        else:
            self.unproved.add(what)

    def _made_here(self, layer: Layer, what: str) -> None:
        """A layer that was made here, and once written as an archive: it gives the same again."""
        tree, nowhere = open_folder(layer.diff), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            args = {"overlay": True, "pack": ""}
            found = self._store.caller.call(f"{_JOBS}:diff", args, [tree, nowhere])["diff_id"]
        finally:
            os.close(tree)
            os.close(nowhere)
        if found != layer.diff_id:
            self._set_aside(layer, f"{what}: its files make {found}, not {layer.diff_id}")

    def _pulled(self, layer: ImageLayer, there: Layer, lowers: list[str], what: str) -> None:
        """A layer that came as an archive: unpacked again, it gives the same tree."""
        assert layer.blob is not None
        with self._store.work() as work:
            work.protect(layers=[layer.key, *lowers], blobs=[layer.blob.digest])
            pending = self._store.layers.begin(work.folder, layer.key)
            try:
                with self._store.blobs.open(layer.blob.digest) as file:
                    apply_packed(
                        self._store,
                        file.fileno(),
                        pending,
                        lowers,
                        name=what,
                        diff_id=layer.diff_id,
                        bounds=STORED,
                    )
                same = self._digest(pending / "diff") == self._digest(there.diff)
            except InvalidImage as wrong:
                self._set_aside(there, wrong.what)
                return
            except OSError as wrong:
                msg = f"{what} cannot be verified: {wrong.strerror or wrong}"
                raise SandboxError(msg, next_step="look at the machine's disk") from wrong
        if not same:
            self._set_aside(there, f"{what}: its files are not those of its archive")

    def _digest(self, tree: Path) -> str:
        descriptor = open_folder(tree)
        try:
            return str(self._store.caller.call(f"{_JOBS}:digest", {}, [descriptor])["digest"])
        finally:
            os.close(descriptor)

    def _set_aside(self, layer: Layer, problem: str) -> None:
        self._bad.add(layer.key)
        self.damage.append(problem)
        self._store.layers.discard(layer.key)
