"""Mark and sweep: what nothing refers to any more goes.

Marked is what belongs to an image that is kept, to a sandbox whose owner lives, or to work in
progress. The sweep renames what is left into trash/, with every new reference held back for these
milliseconds; removing the files comes after. Killed anywhere in between, it leaves a store that is
whole, and the next sweep goes on.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.store.files import names
from pytest_sandbox.oci.store.work import living

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Store

GRACE: Final = 3600.0
"""A layer or blob that nothing refers to is kept so many seconds, if `older_than` is longer."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a sweep removed; `bytes` is about what the disk got back."""

    images: tuple[Image, ...]
    layers: tuple[str, ...]
    blobs: tuple[str, ...]
    bytes: int


def collect(
    store: Store,
    *,
    older_than: float,
    images: Iterable[Image] | None = None,
) -> Collected:
    """Forget images that were not used for `older_than` seconds, and set aside what is left over.

    Kept in any case are pinned images and those that a living sandbox uses. With `images`, those
    are forgotten whatever their age and use, and no others.
    """
    chosen = None if images is None else {(i.reference, i.platform) for i in images}
    with store.locks.references(sweep=True):
        keys, digests = _set_dead_aside(store)
        used, ended = store.uses.living()
        for name in ended:
            store.uses.release(name)
        kept: list[Image] = []
        forgotten: list[Image] = []
        for image in store.records.all():
            if chosen is None:
                stays = image.pinned or time.time() - image.last_use <= older_than
                stays = stays or (bool(image.keys) and set(image.keys) <= used)
            else:
                stays = (image.reference, image.platform) not in chosen
            (kept if stays else forgotten).append(image)
        for image in forgotten:
            store.records.remove(image)
        marked = keys | used | digests | _parts(kept)
        marked |= _below(store, marked)
        if chosen is None:
            swept = _sweep(store, marked, None, min(older_than, GRACE))
        else:
            swept = _sweep(store, marked, _parts(forgotten), 0.0)
        _remove_torn(store)
    store.empty_trash(keep=used)
    return Collected(tuple(forgotten), *swept)


def _sweep(
    store: Store, marked: set[str], only: set[str] | None, grace: float
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Set aside what is not marked (and among `only`): layers, blobs, and their bytes."""
    freed = 0
    layers, blobs = [], []
    for key in store.layers.all():
        if key in marked or (only is not None and key not in only):
            continue
        if store.layers.age(key) >= grace:
            layer = store.layers.record(key)
            freed += layer.bytes if layer is not None else 0
            store.layers.discard(key)
            layers.append(key)
    for digest in store.blobs.all():
        if digest in marked or (only is not None and digest not in only):
            continue
        if store.blobs.age(digest) >= grace:
            freed += store.blobs.remove(digest)
            blobs.append(digest)
    return tuple(layers), tuple(blobs), freed


def _set_dead_aside(store: Store) -> tuple[set[str], set[str]]:
    """Set aside what dead work left; the layers and blobs that living work protects."""
    keys, digests, dead = living(store.leases)
    leases = set(names(store.leases))
    for name in {*dead, *(name for name in names(store.temporary) if name not in leases)}:
        with contextlib.suppress(FileNotFoundError):
            (store.temporary / name).rename(store.trash / f"work.{name}")
        with contextlib.suppress(FileNotFoundError):
            (store.leases / name).unlink()
    return keys, digests


def _below(store: Store, marked: set[str]) -> set[str]:
    """The layers that marked ones stand on."""
    found: set[str] = set()
    for key in marked:
        at = "" if ":" in key else key  # a digest stands on nothing
        while at and (layer := store.layers.record(at)) is not None:
            at = layer.parent
            if at in marked or at in found:
                break
            if at:
                found.add(at)
    return found


def _parts(images: Iterable[Image]) -> set[str]:
    found: set[str] = set()
    for image in images:
        found.update(image.keys)
        found.update((image.digest, image.config_digest))
        found.update(layer.blob.digest for layer in image.layers if layer.blob is not None)
    return found


def _remove_torn(store: Store) -> None:
    """Small files that a killed process wrote beside their place (see files.py)."""
    for folder in store.small:
        for file in folder.iterdir():
            if file.name.startswith("."):
                with contextlib.suppress(OSError):
                    if time.time() - file.stat().st_mtime > GRACE:
                        file.unlink()


def sweep_dead_work(store: Store) -> None:
    """Set aside what killed work left, without looking at anything else."""
    if names(store.leases) or names(store.temporary):
        with store.locks.references(sweep=True):
            _set_dead_aside(store)
