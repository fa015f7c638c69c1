"""Package lists and archives that builds share: who fills them, and who may only read.

They are kept by ground: the base image, the architecture, and every instruction and file before
the one that installs packages, so the sources and their keys are in it. Each ground has
generations: the lists of one moment, with the archives fetched by them. A generation appears by one
rename and its lists never change; archives are added by hard links, each whole.

Only a sandbox over the ground itself fills it, in which nothing has run but the ground's own
package manager (refresh and download, no script of any package). Builds, which do run scripts as
the sandbox's root, see a generation as the lower layer of an overlay: what they write there goes
with them. So one build cannot change what another one installs; a ground can be harmed by itself
alone. Nobody waits for another process: who finds no lists that are young enough gets its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.images.installing import KEEPING, KEPT
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.lifetimes import boot_id
from pytest_sandbox.oci.store.files import names, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.store import Store, Work
    from pytest_sandbox.runtimes.oci.order import MountOrder

FRESH: Final = 86400.0
"""Lists are used for so many seconds, then they are revalidated."""
MOST_BYTES: Final = 2 << 30
"""Lists and archives of all grounds; beyond it, those that were not used for longest go."""
FOLDER: Final = "packages"
_JOBS: Final = "pytest_sandbox.runtimes.oci.build_packages_jobs"
_FORMAT: Final = 1
_SETTLED: Final = 60.0
_META: Final = "meta.json"
_SETS: Final = "sets"

_busy: dict[tuple[str, str], threading.Lock] = {}
_busy_lock: Final = threading.Lock()


def ground_key(family: str, parts: Mapping[str, Any]) -> str:
    """The key of a ground, from everything that its lists and archives depend on."""
    made = {"format": _FORMAT, "family": family, "by": KEEPING[family].refresh}
    text = json.dumps({**made, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Generation:
    """The lists of one moment. `created`: when the sandbox that got them was started."""

    folder: Path
    created: float
    before: float = 0.0
    """Archives that came later may not have reached the disk before the machine was restarted."""

    def resolved(self, packages: Sequence[str]) -> tuple[str, ...] | None:
        """What a set consists of: a line an archive (name, size, digest); nothing where the manager
        does not tell; None where the set was not fetched yet.
        """
        try:
            text = self._note(packages).read_text(encoding="utf-8")
        except OSError:
            return None
        return tuple(line for line in text.splitlines() if not line.startswith("#"))

    def note(self, packages: Sequence[str], text: str) -> None:
        """The set was fetched."""
        file = self._note(packages)
        with contextlib.suppress(FileNotFoundError):  # a younger one has taken its place
            aside = file.with_name(f".{os.urandom(6).hex()}")
            aside.write_text(text, encoding="utf-8")
            aside.rename(file)

    def _note(self, packages: Sequence[str]) -> Path:
        key = hashlib.sha256("\0".join(sorted(packages)).encode()).hexdigest()
        return self.folder / _SETS / key


@dataclass(slots=True)
class Shown:
    """A generation, mounted for one sandbox."""

    place: str
    name: str
    folder: Path
    family: str

    @property
    def mounts(self) -> tuple[MountOrder, ...]:
        """For the sandbox's order."""
        from pytest_sandbox.runtimes.oci.order import MountOrder

        found = [MountOrder(self.place, KEPT, read_only=False, own=True)]
        if lists := KEEPING[self.family].lists:
            found.append(MountOrder(f"{self.place}/lists", lists, read_only=False, own=True))
        return tuple(found)


@dataclass(slots=True)
class KeptPackages:
    """The package lists and archives of a store. `run` runs a script with what is shown, in a
    sandbox over the ground that is thrown away; it raises where the script fails.
    """

    store: Store
    work: Work
    family: str
    run: Callable[[str, Shown], None]
    fetched: set[str] = field(default_factory=set)
    """Grounds whose lists this build has got itself."""

    def ready(self, key: str, sets: Sequence[Sequence[str]], *, since: float = 0.0) -> Generation:
        """A generation whose lists are young enough (and got after `since`), in which all `sets`
        were fetched, as far as they can be. Raises what `run` raises.
        """
        found = self.latest(key, since=since)
        if found is None:
            with _lock(str(self.store.root), key):  # builds of one process get the lists once
                found = self.latest(key, since=since)
                if found is None:
                    return self._fetch(key, None, list(sets))
        if left := [one for one in sets if found.resolved(one) is None]:
            return self._fetch(key, found, left)
        self._used(found)
        return found

    def latest(self, key: str, *, since: float = 0.0) -> Generation | None:
        """The youngest generation, if its lists can be used now."""
        found = next(self._generations(key), None)
        if found is None or found.created < max(time.time() - FRESH, since):
            return None
        return found

    @contextlib.contextmanager
    def shown(self, generation: Generation | None) -> Iterator[Shown]:
        """Mount it for one sandbox, in a folder of the build's own."""
        name = f"packages-{os.urandom(6).hex()}"
        folder = self.work.folder / name
        lists = KEEPING[self.family].lists
        args = {
            "name": name,
            "folder": str(folder),
            "generation": str(generation.folder) if generation else "",
            "before": generation.before if generation else 0.0,
            "root": self.store.caller.ids.root,
            "folders": ["lists"] if lists else [],
        }
        told = self.store.caller.call(f"{_JOBS}:lay", args, where="host")
        try:
            yield Shown(told["place"], name, folder, self.family)
        finally:
            self.store.caller.call(f"{_JOBS}:lift", {"name": name}, where="host")

    # --- fetching ---------------------------------------------------------------------------

    def _fetch(
        self, key: str, fresh: Generation | None, sets: Sequence[Sequence[str]]
    ) -> Generation:
        manager = KEEPING[self.family]
        below = fresh or next(self._generations(key), None)
        script = manager.fetch(sets)
        if fresh is None:
            self.fetched.add(key)
            script = f"{{ {manager.refresh}; }} || exit $?\n{script}"
        began = time.time()
        with self.shown(below) as shown:
            self.run(script, shown)
            new = self.work.folder / f"{shown.name}-new"
            if fresh is None:
                (new / _SETS).mkdir(mode=0o700, parents=True)
            args = {
                "name": shown.name,
                "folder": str(shown.folder),
                "archive": manager.archive.pattern,
                "generation": str(fresh.folder) if fresh else "",
                "new": "" if fresh else str(new),
                "root": self.store.caller.ids.root,
                "sets": len(sets),
            }
            told = self.store.caller.call(f"{_JOBS}:gather", args, where="host")
        found = fresh or Generation(new, began)
        for packages, text in zip(sets, told["resolved"], strict=True):
            if text or not manager.resolves:
                found.note(packages, text or "")
        if fresh is None:
            found = self._publish(key, found)
        self._used(found)
        self._note_size(found, int(told["bytes"]))
        trim(self.store, keep=key)
        return found

    def _publish(self, key: str, made: Generation) -> Generation:
        """Rename it into its place; those before it go."""
        meta = {
            "format": _FORMAT,
            "created": made.created,
            "boot": boot_id(),
            "ids": self.store.caller.ids.key(),
            "synced": 0.0,
        }
        write_json(made.folder / _META, meta)
        top = self.store.root / FOLDER / key
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = top / f"{made.created:020.6f}-{os.urandom(4).hex()}"
        made.folder.rename(place)
        for name in names(top):
            if name < place.name:
                _discard(self.store, top / name)
        return Generation(place, made.created)

    def _generations(self, key: str) -> Iterator[Generation]:
        """Those that can be used here, the youngest first."""
        top = self.store.root / FOLDER / key
        for name in reversed(names(top)):
            meta = read_json(top / name / _META)
            if meta is None or meta.get("format") != _FORMAT:
                continue
            if meta.get("ids") != self.store.caller.ids.key():
                continue
            synced, created = float(meta["synced"]), float(meta["created"])
            if meta["boot"] == boot_id():
                yield Generation(top / name, created)
            elif synced > created:
                yield Generation(top / name, created, before=synced)

    def _used(self, generation: Generation) -> None:
        with contextlib.suppress(OSError):
            os.utime(generation.folder.parent)
        meta = read_json(generation.folder / _META)
        if meta and time.time() - max(float(meta["synced"]), generation.created) > _SETTLED:
            threading.Thread(
                target=_sync, args=[generation.folder], name="sandbox-sync", daemon=True
            ).start()

    def _note_size(self, generation: Generation, size: int) -> None:
        meta = read_json(generation.folder / _META)
        if meta is not None:
            with contextlib.suppress(OSError):
                write_json(generation.folder / _META, {**meta, "bytes": size})


# --- how much is kept -----------------------------------------------------------------------------


def trim(store: Store, *, keep: str = "", most: int = MOST_BYTES) -> int:
    """Set grounds aside, the one that was not used for longest first, until they have `most`
    bytes; the ground `keep` is the last to go. The bytes that went.
    """
    sizes = {key: _size(store.root / FOLDER / key) for key in names(store.root / FOLDER)}
    total, gone = sum(sizes.values()), 0
    for key in sorted(sizes, key=lambda key: (key == keep, _age(store, key))):
        if total - gone <= most:
            break
        _discard(store, store.root / FOLDER / key)
        gone += sizes[key]
    return gone


def prune(store: Store, *, older_than: float) -> int:
    """Remove the grounds that were not used for so many seconds; about how many bytes went."""
    gone = 0
    for key in names(store.root / FOLDER):
        if time.time() - _age(store, key) >= older_than:
            gone += _size(store.root / FOLDER / key)
            _discard(store, store.root / FOLDER / key)
    store.empty_trash(keep=store.uses.living()[0])
    return gone


def _age(store: Store, key: str) -> float:
    try:
        return (store.root / FOLDER / key).stat().st_mtime
    except OSError:
        return 0.0


def _size(top: Path) -> int:
    found = (read_json(top / name / _META) for name in names(top))
    return sum(int(meta.get("bytes", 0)) for meta in found if meta)


def _discard(store: Store, folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rename(store.trash / f"packages-{folder.name[:24]}.{os.urandom(6).hex()}")


def _sync(folder: Path) -> None:
    """What was there before has reached the disk."""
    began = time.time()
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            linux.syncfs(descriptor)
        finally:
            os.close(descriptor)
        if meta := read_json(folder / _META):
            write_json(folder / _META, {**meta, "synced": began})


def _lock(root: str, key: str) -> threading.Lock:
    with _busy_lock:
        return _busy.setdefault((root, key), threading.Lock())
