"""The store of images: blobs, unpacked layers, image records; shared by all processes of a user.

Its folder is 0700: nobody else can reach, and so nobody else can execute, a file of a layer.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, SandboxError
from pytest_sandbox.oci.store import collect as sweeping
from pytest_sandbox.oci.store.blobs import Blobs
from pytest_sandbox.oci.store.collect import Collected
from pytest_sandbox.oci.store.files import names
from pytest_sandbox.oci.store.layers import Caller, Layer, Layers
from pytest_sandbox.oci.store.locks import Locks
from pytest_sandbox.oci.store.owners import Owner, owner_of
from pytest_sandbox.oci.store.records import Records
from pytest_sandbox.oci.store.uses import Uses
from pytest_sandbox.oci.store.work import Work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.snapshots import Snapshotter

__all__ = ["Caller", "Collected", "Layer", "Owner", "Store", "Work", "owner_of"]

_FOLDERS: Final = (
    "blobs/sha256",
    "images",
    "layers",
    "leases",
    "locks",
    "pins",
    "sandboxes",
    "tmp",
    "trash",
    "uses",
)
_JOBS: Final = "pytest_sandbox.oci.store.jobs"
_REMOVE: Final = "pytest_sandbox.oci.layers.jobs:remove"


class Store:
    """The store in `root`; `caller` is the supervisor whose jobs touch the files of layers.

    `wanted` names the snapshotter that layers are unpacked for; `auto` is the first that works.
    """

    def __init__(self, root: Path, caller: Caller, wanted: str = "auto") -> None:
        """Raises SandboxError (blame host) where the folder cannot be made or is not our own."""
        self.root = root
        self.caller = caller
        self._wanted = wanted
        self._snapshotter: Snapshotter | None = None
        self._choosing = threading.Lock()
        _make(root)
        self.trash = root / "trash"
        self.temporary = root / "tmp"
        self.leases = root / "leases"
        self.locks = Locks(root / "locks")
        self.blobs = Blobs(root / "blobs" / "sha256")
        self.layers = Layers(root / "layers", self.trash, caller, lambda: self.snapshotter.flavour)
        self.records = Records(root / "images", root / "pins", self.blobs)
        self.uses = Uses(root / "uses")
        self.small = tuple(root / name for name in ("images", "pins", "uses", "blobs/sha256"))

    @property
    def snapshotter(self) -> Snapshotter:
        """The snapshotter that layers are unpacked for. Raises UsageError for an unknown one.

        Where none was tried yet, and none is asked for, it is overlay: see `try_snapshotters`.
        """
        from pytest_sandbox.oci.snapshots import find_snapshotter

        with self._choosing:
            if self._snapshotter is None:
                if self._wanted == "auto":
                    from pytest_sandbox.oci.snapshots.choose import kept_choice

                    kept = kept_choice(self)
                    found = find_snapshotter("overlay" if kept is None else kept.name)
                else:
                    found = find_snapshotter(self._wanted)
                self._snapshotter = found
            return self._snapshotter

    def try_snapshotters(self) -> bool:
        """After a failure: whether the trial of all gives another one than was used.

        Raises TrialFailed where none works.
        """
        from pytest_sandbox.oci.snapshots.choose import choose

        before = self.snapshotter.name
        found = choose(self, self._wanted).snapshotter
        with self._choosing:
            self._snapshotter = found
        return found.name != before

    # --- images -----------------------------------------------------------------------------

    def image(self, reference: Reference, platform: Platform) -> Image | None:
        """The image that a reference stands for here, if all its layers can be used."""
        image = self.records.find(reference, platform)
        if image is None or any(self.layers.get(key) is None for key in image.keys):
            return None
        return image

    def images(self) -> list[Image]:
        """Every recorded image, also those whose layers have to be unpacked again."""
        return self.records.all()

    def record(self, image: Image) -> Image:
        """Record an image whose layers are all here. Raises ImageUnavailable if one is not."""
        with self.locks.references():
            for key in image.keys:
                self.layers.need(key)
            stored = replace(image, stored=time.time())
            self.records.put(stored)
        return stored

    def touch(self, image: Image) -> None:
        """Note that an image is in use now: pruning goes by that."""
        self.records.touch(image)

    def pin(self, reference: Reference) -> None:
        """Keep what a reference stands for, now and later, from `collect`."""
        self.records.pin(reference)

    def unpin(self, reference: Reference) -> None:
        """Undo `pin`."""
        self.records.unpin(reference)

    # --- layers -----------------------------------------------------------------------------

    def layer(self, key: str) -> Layer:
        """An unpacked layer. Raises ImageUnavailable if it cannot be used."""
        return self.layers.need(key)

    def adopt_layer(self, upper: Path, parent: str, key: str) -> Layer:
        """Make the upper folder of an overlay a layer of its own, by renaming it.

        `parent` is the key of the layer below. Note the layers' use before (`use_layers`, which
        takes keys to come), or a sweep may take it. Raises ImageUnavailable, OSError.
        """
        with self.work() as work:
            folder = work.folder / key
            folder.mkdir(mode=0o700)
            self._move(upper, folder / "diff")
            return self.layers.publish(folder, Layer(key, folder, parent=parent))

    def _move(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except PermissionError:  # an ordinary user's, owned by another id of the sandbox
            descriptors: list[int] = []
            try:
                for parent in (source.parent, target.parent):
                    descriptors.append(open_folder(parent))
                names_of_both = {"name": source.name, "new": target.name}
                self.caller.call(f"{_JOBS}:move", names_of_both, descriptors, where="host")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def measure(self, layer: Layer) -> Layer:
        """The layer with its entries and bytes counted, if they were not."""
        if layer.entries:
            return layer
        descriptor = open_folder(layer.diff)
        try:
            found = self.caller.call(f"{_JOBS}:count", {}, [descriptor])
        finally:
            os.close(descriptor)
        return self.layers.note(layer, entries=found["entries"], bytes=found["bytes"])

    def use_layers(self, identity: str, keys: Sequence[str], owner: Owner | None = None) -> None:
        """Keep layers from every sweep while `owner` (this process by default) lives.

        `identity` is the sandbox's name; it is noted in the place of what was noted for it before.
        Keys of layers to come may be among them.
        """
        owner = owner_of() if owner is None else owner
        with self.locks.references():
            self.uses.put(identity, keys, owner)

    def release(self, identity: str) -> None:
        """The sandbox is gone: undo `use_layers`."""
        self.uses.release(identity)

    # --- work, sweeping ---------------------------------------------------------------------

    def work(self) -> Work:
        """Begin a piece of work with a folder of its own; a context manager."""
        return Work(self.leases, self.temporary, self.trash, self.locks)

    def collect(self, *, older_than: float, images: Iterable[Image] | None = None) -> Collected:
        """Remove images not used for `older_than` seconds (or just `images`) and what is left over.

        Pinned images, those of living sandboxes, and what is younger stay; see collect.py.
        """
        return sweeping.collect(self, older_than=older_than, images=images)

    def sweep_dead_work(self) -> None:
        """Set aside what killed processes left half-made; `empty_trash` removes it."""
        sweeping.sweep_dead_work(self)

    def empty_trash(self, keep: Collection[str] = ()) -> None:
        """Remove the files of what was set aside; another process that is at it takes ours along.

        Layers set aside under one of the keys `keep` stay: a sandbox may have them mounted.
        """
        tried: set[str] = set()
        # Looked at again after the lock is free: who found it held has left his things to us.
        while waiting := [
            name
            for name in names(self.trash)
            if name not in tried and name.partition(".")[0] not in keep
        ]:
            tried.update(waiting)
            with self.locks.unless_held("trash") as ours:
                if not ours:
                    return
                descriptor = open_folder(self.trash)
                try:
                    self.caller.call(_REMOVE, {"names": waiting}, [descriptor], where="host")
                finally:
                    os.close(descriptor)


def open_folder(folder: Path) -> int:
    """A descriptor of a folder for a job; one that nobody but its owner may read will do."""
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _make(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
        if found.st_uid != os.geteuid():
            msg = f"the store {root} belongs to uid {found.st_uid}, not to {os.geteuid()}"
            raise SandboxError(
                msg, blame=Blame.HOST, next_step="set PYTEST_SANDBOX_DATA to a folder of your own"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            root.chmod(0o700)
        if os.statvfs(root).f_flag & os.ST_RDONLY:
            msg = f"the store {root} lies on a file system that is read-only"
            raise SandboxError(
                msg, blame=Blame.HOST, next_step="set PYTEST_SANDBOX_DATA to one that is not"
            )
        if not (root / _FOLDERS[-1]).is_dir():
            for name in _FOLDERS:
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as wrong:
        msg = f"the store {root} cannot be made: {wrong.strerror or wrong}"
        raise ImageUnavailable(
            msg,
            blame=Blame.HOST,
            next_step="set PYTEST_SANDBOX_DATA to a folder that you can write",
        ) from None
