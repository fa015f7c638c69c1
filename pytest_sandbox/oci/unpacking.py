"""Layers of an image into the store: downloaded side by side, unpacked while they come.

A layer takes its place only when its archive was held to its digest and its files to the diff id.
Whoever wants the same layer at the same time waits, and finds it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import InvalidImage, SandboxError
from pytest_sandbox.oci.applying import (
    OtherSnapshotter,
    apply_ahead,
    apply_packed,
    settle_ahead,
)
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.digests import hex_of
from pytest_sandbox.oci.images import ImageLayer
from pytest_sandbox.oci.spool import Spool, Stopped
from pytest_sandbox.oci.store.layers import Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from filelock import FileLock

    from pytest_sandbox.oci.descriptors import Descriptor
    from pytest_sandbox.oci.store import Store, Work

DOWNLOADS: Final = 4
"""So many layers come at once."""
_WORTH_KNOWING: Final = 64 << 20
"""So many bytes are still fetched after a layer was refused, to learn whether they were damaged."""
_PATIENCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Where a layer comes from. `fetch` streams the packed layer into a sink; with `verified` it
    holds the bytes to the descriptor's size and digest itself. `done` is called when the layer is
    in the store.
    """

    blob: Descriptor
    diff_id: str
    fetch: Callable[[Spool], None]
    verified: bool = False
    done: Callable[[], None] = lambda: None


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of each layer (image-spec, config.md, Layer ChainID)."""
    found: list[str] = []
    for diff_id in diff_ids:
        if not found:
            found.append(diff_id)
        else:
            text = f"{found[-1]} {diff_id}".encode()
            found.append(f"sha256:{hashlib.sha256(text).hexdigest()}")
    return tuple(found)


def unpack_layers(
    store: Store,
    sources: Sequence[LayerSource],
    *,
    keep_blobs: bool = True,
    refetch: bool = False,
    bounds: Bounds = DEFAULT_BOUNDS,
    name: str = "image",
    say: Callable[[str], None] = lambda _text: None,
) -> tuple[tuple[ImageLayer, ...], Work]:
    """Have the layers in the store, bottom first: those that are there are not fetched again.

    `keep_blobs` keeps the packed layers too; `refetch` fetches packed ones that are missing though
    the layer is there. `name` is the image's, for messages; `say` gets lines for people.
    The second value is the work that protects the layers until the image is recorded: close it
    then. Raises what a source raises, InvalidImage, SandboxError.
    """
    try:
        return _unpack_layers(
            store,
            sources,
            keep_blobs=keep_blobs,
            refetch=refetch,
            bounds=bounds,
            name=name,
            say=say,
        )
    except OtherSnapshotter:
        say(f"layers are unpacked for {store.snapshotter.name}: overlay does not work here")
        return _unpack_layers(
            store,
            sources,
            keep_blobs=keep_blobs,
            refetch=refetch,
            bounds=bounds,
            name=name,
            say=say,
        )


def _unpack_layers(
    store: Store,
    sources: Sequence[LayerSource],
    *,
    keep_blobs: bool,
    refetch: bool,
    bounds: Bounds,
    name: str,
    say: Callable[[str], None],
) -> tuple[tuple[ImageLayer, ...], Work]:
    chains = chain_ids([source.diff_id for source in sources])
    tasks = [
        _Task(number, source, chain, hex_of(chain), hex_of(chains[number - 1]) if number else "")
        for number, (source, chain) in enumerate(zip(sources, chains, strict=True))
    ]
    work = store.work()
    try:
        work.protect(
            layers=[task.key for task in tasks], blobs=[task.source.blob.digest for task in tasks]
        )
        run = _Run(
            store,
            work,
            tasks,
            keep_blobs=keep_blobs,
            refetch=refetch,
            bounds=bounds,
            name=name,
            say=say,
        )
        try:
            for task in tasks:
                run.finish(task)
                task.source.done()
        finally:
            run.close()
    except BaseException:
        with contextlib.suppress(SandboxError, OSError):  # the next one looks again
            work.close()
            store.empty_trash()
        raise
    return tuple(ImageLayer(t.key, t.source.diff_id, t.source.blob) for t in tasks), work


@dataclass(slots=True)
class _Task:
    number: int
    source: LayerSource
    chain: str
    key: str
    parent: str
    ready: threading.Event = field(default_factory=threading.Event)
    lock: FileLock | None = None
    layer: Layer | None = None
    spool: Spool | None = None
    error: BaseException | None = None
    free: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    outcome: tuple[Path, dict[str, Any]] | None = None
    wrong: BaseException | None = None

    def claim(self) -> bool:
        """Whether the caller is the one who unpacks it."""
        return self.free.acquire(blocking=False)


class _Run:
    """One call of `unpack_layers`: threads download and unpack ahead, the caller's thread brings
    the layers in order.
    """

    def __init__(
        self,
        store: Store,
        work: Work,
        tasks: list[_Task],
        *,
        keep_blobs: bool,
        refetch: bool,
        bounds: Bounds,
        name: str,
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._work = work
        self._tasks = tasks
        self._keep = keep_blobs
        self._refetch = refetch
        self._bounds = bounds
        self._name = name
        self._say = say
        self._over = threading.Event()
        self._waiting = deque(tasks)
        self._spools: dict[str, Spool] = {}
        self._ahead = deque(tasks[1:] if store.snapshotter.layered else ())
        kinds = (self._download, min(DOWNLOADS, len(tasks))), (self._go_ahead, len(self._ahead))
        self._threads = [
            threading.Thread(target=target, name=f"sandbox-{target.__name__}", daemon=True)
            for target, count in kinds
            for _ in range(min(count, DOWNLOADS))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End every thread and give the locks back, whatever happened."""
        self._over.set()
        for task in self._tasks:
            if task.spool is not None:
                task.spool.stop()
        for thread in self._threads:
            thread.join(_PATIENCE)  # one that waits for a silent server ends later, by itself
        for task in self._tasks:
            if task.lock is not None:
                task.lock.release()

    # --- the downloading threads ------------------------------------------------------------

    def _download(self) -> None:
        while not self._over.is_set():
            try:
                task = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._fetch(task)
            except BaseException as wrong:
                task.error = wrong
            finally:
                task.ready.set()

    def _fetch(self, task: _Task) -> None:
        what = f"layer {task.number + 1} of {self._name}"
        lock = self._store.locks.acquire(
            "layer", task.key, what, self._say, cancelled=self._over.is_set
        )
        task.lock = lock
        if self._over.is_set():
            lock.release()
            raise Stopped
        blob = task.source.blob
        task.layer = self._store.layers.get(task.key)
        there = self._store.blobs.has(blob.digest, blob.size)
        if there or (task.layer is not None and not (self._keep and self._refetch)):
            return
        if (spool := self._spools.get(blob.digest)) is not None:
            task.spool = spool  # the same archive twice in one image
            return
        blobs, folder, verified = self._store.blobs, self._work.folder, task.source.verified
        spool = Spool(lambda: blobs.writer(folder, blob, verified=verified))
        task.spool = self._spools[blob.digest] = spool
        task.ready.set()
        try:
            task.source.fetch(spool)
        except BaseException as wrong:
            spool.end(wrong)
            if not isinstance(wrong, Exception):
                raise
        else:
            spool.end()

    # --- the unpacking threads --------------------------------------------------------------

    def finish(self, task: _Task) -> None:
        """Wait for a layer or unpack it, and publish it. Raises what went wrong."""
        task.ready.wait()
        if task.error is not None:
            raise task.error
        if task.layer is None:
            pending, told = self._settled(task) or self._unpack(task, self._apply)
            if task.spool is not None and self._keep:
                self._publish_blob(task)
            self._store.layers.publish(pending, self._layer(task, pending, told))
        elif task.spool is not None:
            task.spool.wait()
            self._publish_blob(task)
        if task.lock is not None:
            lock, task.lock = task.lock, None
            lock.release()

    def _publish_blob(self, task: _Task) -> None:
        assert task.spool is not None
        if not self._store.blobs.has(task.source.blob.digest, task.source.blob.size):
            task.spool.publish()

    def _layer(self, task: _Task, pending: Path, told: dict[str, Any]) -> Layer:
        notes = []
        if told["xattrs"]:
            notes.append(
                f"{told['xattrs']} extended attributes could not be set, the first of them at"
                f" {told['first_xattr']}"
            )
        return Layer(
            key=task.key,
            folder=pending,
            parent=task.parent,
            diff_id=told["diff_id"],
            chain_id=task.chain,
            entries=told["entries"],
            bytes=told["size"],
            devices=told["devices"],
            notes=tuple(notes),
        )

    def _go_ahead(self) -> None:
        """Unpack layers whose lower ones are still on their way, lowest first."""
        while not self._over.is_set():
            try:
                task = self._ahead.popleft()
            except IndexError:
                return
            task.ready.wait()
            if task.error is not None or task.layer is not None or not task.claim():
                continue
            try:
                task.outcome = self._unpack(task, self._apply_ahead)
            except BaseException as wrong:
                task.wrong = wrong
            finally:
                task.done.set()

    def _settled(self, task: _Task) -> tuple[Path, dict[str, Any]] | None:
        """What went ahead, completed from the layers below; None if that has to be done anew."""
        if task.claim():
            return None  # nobody has begun
        task.done.wait()
        if task.wrong is not None:
            raise task.wrong
        assert task.outcome is not None
        pending, told = task.outcome
        if "redo" in told:
            return None
        redo = settle_ahead(self._store, pending, self._lowers(task), told["pending"])
        return None if redo else (pending, told)

    def _unpack(
        self, task: _Task, apply: Callable[[_Task, int, Path], dict[str, Any]]
    ) -> tuple[Path, dict[str, Any]]:
        while True:
            pending = self._store.layers.begin(self._work.folder, task.key)
            try:
                if task.spool is None:
                    return pending, self._from_blob(task, pending, apply)
                return pending, self._from_spool(task, task.spool, pending, apply)
            except _Again:
                continue

    def _from_blob(
        self, task: _Task, pending: Path, apply: Callable[[_Task, int, Path], dict[str, Any]]
    ) -> dict[str, Any]:
        digest = task.source.blob.digest
        with self._store.blobs.open(digest) as file:
            try:
                return apply(task, file.fileno(), pending)
            except InvalidImage:
                for _ in self._store.blobs.blocks(digest):
                    pass  # a damaged blob is said to be that, and is removed
                raise

    def _from_spool(
        self,
        task: _Task,
        spool: Spool,
        pending: Path,
        apply: Callable[[_Task, int, Path], dict[str, Any]],
    ) -> dict[str, Any]:
        generation = spool.generation
        reader, pipe = os.pipe2(os.O_CLOEXEC)

        def feed() -> None:
            try:
                spool.feed(pipe, generation)
            finally:
                os.close(pipe)

        feeder = threading.Thread(target=feed, name="sandbox-feed", daemon=True)
        feeder.start()
        try:
            try:
                told = apply(task, reader, pending)
            finally:
                os.close(reader)
            feeder.join()
        except InvalidImage:
            # Damaged on the way, or made so? The digest of all of it tells.
            if spool.generation != generation:
                raise _Again from None
            if spool.missing(task.source.blob.size) > _WORTH_KNOWING:
                raise
            spool.wait()
            if spool.generation != generation:
                raise _Again from None
            raise
        if "redo" in told:
            return told
        spool.wait()
        if spool.generation != generation:
            raise _Again
        return told

    def _lowers(self, task: _Task) -> list[str]:
        return [below.key for below in self._tasks[: task.number]]

    def _apply(self, task: _Task, stream: int, pending: Path) -> dict[str, Any]:
        return apply_packed(
            self._store,
            stream,
            pending,
            self._lowers(task),
            name=f"{self._name}, layer {task.number + 1}",
            diff_id=task.source.diff_id,
            bounds=self._bounds,
        )

    def _apply_ahead(self, task: _Task, stream: int, pending: Path) -> dict[str, Any]:
        return apply_ahead(
            self._store,
            stream,
            pending,
            name=f"{self._name}, layer {task.number + 1}",
            diff_id=task.source.diff_id,
            bounds=self._bounds,
        )


class _Again(Exception):
    """The source started anew while its bytes were unpacked."""
