"""Unpacked layers by key: layers/<key>/{diff/,layer.json}.

The key is the chain id (image-spec, config.md) in hex, or `snap-` and more for layers made here.
A layer appears whole, by one rename. Nothing is synchronised to the disk meanwhile: a layer of an
earlier boot that was not known to have reached the disk is unpacked again.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_sandbox.errors import Blame, ImageUnavailable, UsageError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.lifetimes import boot_id
from pytest_sandbox.oci.store.files import names, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.ids import IdSpace

_KEY: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,127}")
_FIELDS: Final = (
    "parent",
    "diff_id",
    "chain_id",
    "entries",
    "bytes",
    "devices",
    "notes",
    "flavour",
    "ids",
    "created",
    "boot",
    "synced",
    "blob",
)
_KNOWN: Final = 1024
"""More layers than this are not remembered."""
_SETTLED: Final = 60.0
"""After so many seconds the kernel has begun to write a layer by itself, and waiting is short."""


class Caller(Protocol):
    """What a store needs of a supervisor: its ids and its jobs."""

    @property
    def ids(self) -> IdSpace:
        """The ids of sandboxes."""

    def call(
        self, job: str, args: Mapping[str, Any], fds: Sequence[int] = (), *, where: Any = "mapped"
    ) -> dict[str, Any]:
        """Run a job and return its answer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An unpacked layer. `parent` is the key of the layer below, empty for the lowest.

    `entries` and `bytes` count what was unpacked, `devices` the nodes that became empty files.
    `ids` is the id map that it was unpacked in, `flavour` how it
    says what differs from the layers below (see oci/snapshots).
    `blob` is the descriptor of the archive that was made of a layer made here.
    """

    key: str
    folder: Path
    parent: str = ""
    diff_id: str = ""
    chain_id: str = ""
    entries: int = 0
    bytes: int = 0
    devices: int = 0
    notes: tuple[str, ...] = ()
    flavour: str = ""
    ids: str = ""
    created: float = 0.0
    boot: str = ""
    synced: bool = False
    blob: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def diff(self) -> Path:
        """The folder that holds its files."""
        return self.folder / "diff"

    def document(self) -> dict[str, Any]:
        """As layer.json holds it."""
        return {"format": 1, "key": self.key, **{name: getattr(self, name) for name in _FIELDS}}


class Layers:
    """The unpacked layers of one store."""

    def __init__(
        self, folder: Path, trash: Path, caller: Caller, flavour: Callable[[], str]
    ) -> None:
        self._folder = folder
        self._trash = trash
        self._caller = caller
        self._flavour = flavour
        self._syncing = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int, int], Layer]] = {}

    def folder(self, key: str) -> Path:
        """The folder of a layer, whether it is there or not. Raises UsageError for no key."""
        if not _KEY.fullmatch(key):
            msg = f"{key[:100]!r} is no key of a layer"
            raise UsageError(msg, next_step="expected is hex, or snap- and hex")
        return self._folder / key

    def all(self) -> list[str]:
        """The keys of everything that stands in the place of a layer."""
        return [name for name in names(self._folder) if _KEY.fullmatch(name)]

    def get(self, key: str) -> Layer | None:
        """The layer, if it is there, whole, and unpacked for the ids and snapshotter of now."""
        layer = self.record(key)
        if layer is None or layer.ids != self._caller.ids.key():
            return None
        if layer.flavour != self._flavour():
            return None
        if not layer.synced:
            if layer.boot != boot_id():
                return None
            if time.time() - layer.created > _SETTLED:
                self._sync_behind(layer)
        return layer

    def need(self, key: str) -> Layer:
        """The layer. Raises ImageUnavailable if it cannot be used."""
        layer = self.get(key)
        if layer is None:
            msg = f"the layer {key} is not in the store"
            raise ImageUnavailable(msg, blame=Blame.HOST, next_step="pull the image again")
        return layer

    def record(self, key: str) -> Layer | None:
        """What layer.json says, whether the layer can be used now or not.

        It is always put in place whole, by renaming: one with the same number, time and size was
        read already. A sandbox of many layers asks for each of them at every start.
        """
        known = self._known.get(key)
        place = f"{self._folder}/{key}" if known is not None else self.folder(key)
        try:
            seen = os.stat(f"{place}/layer.json")  # noqa: PTH116 - for speed
        except OSError:
            self._known.pop(key, None)
            return None
        mark = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
        if known is not None and known[0] == mark:
            return known[1]
        layer = self._read(key)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        if layer is not None:
            self._known[key] = (mark, layer)
        return layer

    def _read(self, key: str) -> Layer | None:
        folder = self.folder(key)
        found = read_json(folder / "layer.json")
        if found is None or found.get("format") != 1:
            return None
        try:
            return Layer(
                key=key,
                folder=folder,
                parent=str(found["parent"]),
                diff_id=str(found["diff_id"]),
                chain_id=str(found["chain_id"]),
                entries=int(found["entries"]),
                bytes=int(found["bytes"]),
                devices=int(found["devices"]),
                notes=tuple(map(str, found["notes"])),
                flavour=str(found["flavour"]),
                ids=str(found["ids"]),
                created=float(found["created"]),
                boot=str(found["boot"]),
                synced=bool(found["synced"]),
                blob=found["blob"],
            )
        except (KeyError, TypeError, ValueError):
            return None

    def begin(self, work: Path, key: str) -> Path:
        """A new folder in `work` with an empty diff/ that belongs to the sandboxes' root."""
        folder = work / f"{key}.{os.urandom(4).hex()}"
        folder.mkdir(mode=0o700)
        diff = folder / "diff"
        diff.mkdir(mode=0o755)
        uid, gid = self._caller.ids.root
        if os.geteuid() == 0:
            os.chown(diff, uid, gid)
        diff.chmod(0o755)
        os.utime(diff, (0, 0))  # the same each time, where the layer does not list its root
        return folder

    def publish(self, pending: Path, layer: Layer) -> Layer:
        """Write the record of what `pending` holds and rename it into its place."""
        layer = replace(
            layer,
            folder=self.folder(layer.key),
            ids=self._caller.ids.key(),
            flavour=self._flavour(),
            created=time.time(),
            boot=boot_id(),
            synced=False,
        )
        write_json(pending / "layer.json", layer.document())
        for _ in range(3):
            try:
                pending.rename(layer.folder)
            except OSError:
                if (there := self.get(layer.key)) is not None:
                    return there  # somebody else was quicker; ours goes with the work's folder
                self.discard(layer.key)
            else:
                return layer
        msg = f"the layer {layer.key} cannot take its place in the store"
        raise ImageUnavailable(msg, blame=Blame.HOST, next_step="run pytest-sandbox image prune")

    def note(self, layer: Layer, **changes: Any) -> Layer:
        """Change fields of a layer's record."""
        layer = replace(layer, **changes)
        write_json(layer.folder / "layer.json", layer.document())
        return layer

    def discard(self, key: str) -> None:
        """Set a layer aside; `Store.empty_trash` removes it. Mounts of it are not disturbed."""
        with contextlib.suppress(FileNotFoundError):
            self.folder(key).rename(self._trash / f"{key}.{os.urandom(6).hex()}")

    def age(self, key: str) -> float:
        """Seconds since a layer took its place; 0 if it is not there."""
        try:
            return time.time() - (self.folder(key) / "layer.json").stat().st_mtime
        except FileNotFoundError:
            layer = self.folder(key)
            return time.time() - layer.stat().st_mtime if layer.is_dir() else 0.0

    def _sync_behind(self, layer: Layer) -> None:
        """Make sure, without waiting for it, that a layer is on the disk, and note it."""

        def sync() -> None:
            if not self._syncing.acquire(blocking=False):
                return
            try:
                linux.syncfs(descriptor)
                with contextlib.suppress(OSError):
                    self.note(layer, synced=True)
            finally:
                self._syncing.release()
                os.close(descriptor)

        try:
            descriptor = os.open(layer.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        threading.Thread(target=sync, name="sandbox-sync", daemon=True).start()
