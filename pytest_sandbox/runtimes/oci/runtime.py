"""Sandboxes and images without a daemon: a registry client, a store, and runc or crun."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import socket
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import ImageUnavailable, RuntimeUnavailable, SandboxError
from pytest_sandbox.folders import data_folder
from pytest_sandbox.runtimes import shell
from pytest_sandbox.runtimes.control import Control, ControlLost
from pytest_sandbox.runtimes.live_system import LiveSystem
from pytest_sandbox.runtimes.oci import leavings, weak
from pytest_sandbox.runtimes.oci.channel import PipeChannel
from pytest_sandbox.runtimes.oci.container import OciContainer
from pytest_sandbox.runtimes.oci.machine import Machine, find_machine
from pytest_sandbox.runtimes.oci.order import LimitOrder, MountOrder, Order
from pytest_sandbox.runtimes.run_folder import RunFolder
from pytest_sandbox.runtimes.shell import FOLDER, Facts
from pytest_sandbox.runtimes.streams import TailBuffer
from pytest_sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from pytest_sandbox.oci.cgroup_usage import Usage
    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.oci.supervisor import Channel, Supervisor
    from pytest_sandbox.runtimes.base import (
        BuildRequest,
        ImageInfo,
        Owner,
        RuntimeInfo,
        SandboxSpec,
        Stats,
    )
    from pytest_sandbox.targets import Target

_START: Final = "pytest_sandbox.runtimes.oci.launch:start"
_HOSTNAME: Final = "sandbox"
_KEPT: Final = 16
"""Orders of so many kinds are kept."""
_OVERHEAD: Final = 3
"""Init, the control shell and one worker do not count against the limit of processes (process 1
alone where that runs the commands).
"""


class OciRuntime:
    """The Runtime protocol on runc or crun; nothing is started before it is needed.

    `settings` are a run's: engine, snapshotter, registries, bounds on images; `engine` and
    `snapshotter` stand in place of theirs. `fast_path=False` makes every command a real exec.
    """

    name = "oci"
    starts_ahead = True

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        fast_path: bool = True,
        engine: str = "",
        snapshotter: str = "",
        launcher: str = "",
        folder: Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self.fast_path = fast_path
        self._settings = settings or Settings()
        self._launcher = launcher or self._settings.launcher
        self._engine = engine or self._settings.oci_engine.removeprefix("auto")
        if self._launcher in {"runc", "crun"} and not self._engine:
            self._engine = self._launcher
        self._snapshotter = snapshotter or self._settings.oci_snapshotter
        self._root = folder or data_folder(self._environ) / "oci"
        self._lock = threading.RLock()
        self._machine: Machine | None = None
        self._systems: set[LiveSystem] = set()
        self._numbers = itertools.count(1)
        self._told: set[str] = set()
        """Kinds of orders that a worker has had."""
        self._orders: list[tuple[SandboxSpec, tuple[str, ...], str, Order]] = []
        self._folder = RunFolder()
        self._owner: Owner | None = None

    # --- the machine ------------------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        """What this machine gives. Raises RuntimeUnavailable."""
        with self._lock:
            if self._machine is None:
                self._machine = find_machine(
                    self._root,
                    engine=self._engine,
                    snapshotter=self._snapshotter,
                    launcher=self._launcher,
                    environ=self._environ,
                )
            return self._machine

    @property
    def supervisor(self) -> Supervisor:
        """The process that works for this one."""
        return self.machine.supervisor

    @property
    def store(self) -> Store:
        """Images and layers."""
        return self.machine.store

    def info(self) -> RuntimeInfo:
        return self.machine.info()

    def warm(self) -> None:
        """Start the supervisor now, and not with the first sandbox. Raises SandboxError."""
        self.supervisor.start()

    def usage(self, name: str) -> Usage:
        """What a sandbox's cgroup has used so far."""
        from pytest_sandbox.oci.cgroup_usage import read_usage

        return read_usage(self.machine.access.cgroups.paths(name))

    def watched_stats(self, pid: int, peak: int) -> Stats:
        """Use of resources where there is no cgroup."""
        from pytest_sandbox.runtimes.oci.watched import tree_stats

        return tree_stats(pid, self.supervisor.pid, peak)

    @contextlib.contextmanager
    def frozen(self, container: OciContainer) -> Iterator[None]:
        """Every process of a sandbox is stopped inside this context."""
        from pytest_sandbox.runtimes.oci.freezing import resume, stop

        stopped = stop(container.pid, self.supervisor.pid)
        try:
            yield
        finally:
            resume(stopped)

    def close(self) -> None:
        with self._lock:
            systems = list(self._systems)
        for system in systems:
            with contextlib.suppress(SandboxError):
                system.close()
        with self._lock:
            machine, self._machine = self._machine, None
        self._folder.close()
        if machine is not None:
            machine.close()

    # --- images -----------------------------------------------------------------------------

    def image(self, reference: str, arch: str = "") -> Image | None:
        """An image of the store; of this machine's architecture unless another one is asked for."""
        from pytest_sandbox.runtimes.oci import images

        return images.stored(self.store, reference, arch)

    def find_image(self, reference: str) -> ImageInfo | None:
        from pytest_sandbox.runtimes.oci import images

        return images.find(self.store, reference)

    def pull(self, reference: str, target: Target, say: Callable[[str], None]) -> ImageInfo:
        from pytest_sandbox.runtimes.oci import images

        return images.pull(
            self.store,
            reference,
            target,
            say,
            environ=self._environ,
            settings=self._settings,
        )

    def load_rootfs(
        self, tar: IO[bytes], reference: str, target: Target, labels: Mapping[str, str]
    ) -> ImageInfo:
        from pytest_sandbox.runtimes.oci import images

        bounds = self._settings.bounds()
        return images.load_rootfs(self.store, tar, reference, target, labels, bounds=bounds)

    def build(self, request: BuildRequest, say: Callable[[str], None]) -> ImageInfo:
        from pytest_sandbox.runtimes.oci import build

        return build.build(self, request, say)

    def resolve_packages(
        self, request: BuildRequest, sets: Sequence[Sequence[str]], say: Callable[[str], None]
    ) -> tuple[str, list[tuple[str, ...] | None]]:
        """See image_builds.ResolvesPackages."""
        from pytest_sandbox.runtimes.oci import build

        return build.resolve(self, request, sets, say)

    def remove_image(self, reference: str) -> None:
        from pytest_sandbox.runtimes.oci import images

        images.remove(self.store, reference)

    def images(self) -> list[ImageInfo]:
        from pytest_sandbox.runtimes.oci import images

        return images.ours(self.store)

    def snapshot(
        self,
        container: OciContainer,
        name: str | None,
        labels: Mapping[str, str],
        ours: Collection[int],
    ) -> str:
        """Make a snapshot of a running sandbox; its name. See snapshot.take for `ours`."""
        from pytest_sandbox.runtimes.oci import snapshot

        return snapshot.take(self, container, name, labels, ours)

    # --- sandboxes --------------------------------------------------------------------------

    def start(self, spec: SandboxSpec, owner: Owner) -> LiveSystem:
        image = self.image(spec.image, spec.target.arch)
        if image is None:
            msg = f"image {spec.image} is not in the store"
            raise ImageUnavailable(msg, next_step="build or pull it first")
        number = next(self._numbers)
        word = re.sub(r"[^A-Za-z0-9]", "", owner.run)[:8] or "run"
        name = f"ps-{word}-{owner.pid}-{number}-{secrets.token_hex(3)}"
        direct = self.machine.launcher == "direct"
        folder = self._folder.make(owner, name) if self.fast_path and not direct else None
        order = self._like_before(spec, image, name) if direct else None
        if order is None:
            order = self._order(spec, image, name, folder)
            # With the host's network, files of the sandbox are the host's of this moment.
            if direct and not spec.mounts and spec.network == "none":
                order = order._replace(kind=order.digest())
                self._orders.append((spec, image.keys, image.digest, order))
                del self._orders[:-_KEPT]
        try:
            system = self._start(spec, order, folder, owner)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._systems.add(system)
        return system

    def _like_before(self, spec: SandboxSpec, image: Image, name: str) -> Order | None:
        """The order of an earlier sandbox of the same kind, for a new one."""
        for before, keys, digest, order in self._orders:
            if (keys, digest) == (image.keys, image.digest) and before == spec:
                return order._replace(
                    id=name, folder=self.machine.folder(name), notes=self._notes(name)
                )
        return None

    def _notes(self, name: str) -> tuple[str, ...]:
        return (str(self._root / "owners" / name), str(self._root / "uses" / f"{name}.json"))

    def _order(self, spec: SandboxSpec, image: Image, name: str, folder: Path | None) -> Order:
        machine = self.machine
        mounts = [MountOrder(str(m.source), m.target, m.read_only) for m in spec.mounts]
        if folder is not None:
            mounts.append(MountOrder(str(folder), FOLDER, own=True))
        limits = spec.limits
        return machine.order(
            image,
            name,
            user=spec.user,
            hostname=_HOSTNAME,
            network=spec.network,
            mounts=tuple(mounts),
            tmpfs=dict(spec.tmpfs),
            no_new_privileges=spec.no_new_privileges,
            limits=LimitOrder(
                memory=limits.memory,
                cpus=min(limits.cpus, machine.cpus),
                pids=limits.pids + (1 if machine.launcher == "direct" else _OVERHEAD),
                nofile=limits.nofile,
                weak=machine.weak,
            ),
            hold=True,
            notes=self._notes(name),
        )

    def _start(
        self, spec: SandboxSpec, order: Order, folder: Path | None, owner: Owner
    ) -> LiveSystem:
        leavings.note(self._root, order.id, owner)
        self.store.use_layers(order.id, [Path(layer).parent.name for layer in order.layers])
        counters = -1
        if order.limits.weak:
            counters = os.memfd_create("pytest-sandbox-counters")
            os.pwrite(counters, bytes(weak.COUNTERS.size), 0)
        extra = [counters] if counters >= 0 else []
        try:
            if order.launcher == "direct":
                return self._start_direct(spec, order, extra)
            return self._start_held(spec, order, folder, extra)
        except BaseException:
            for descriptor in extra:  # no sandbox took it
                os.close(descriptor)
            leavings.forget_failed(self._root, order.id)
            raise

    def _start_direct(self, spec: SandboxSpec, order: Order, counters: list[int]) -> LiveSystem:
        """Process 1 runs the commands."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            channel, started = self._open(order, [null, null, null, *counters])
        finally:
            os.close(null)
        _, (agent,) = channel.receive() or ({}, (-1,))
        said = TailBuffer()
        container = OciContainer(
            self,
            order,
            channel,
            started,
            said=said,
            counters=counters.pop() if counters else -1,
            control=socket.socket(fileno=agent),
        )
        base = dict(entry.partition("=")[::2] for entry in started["env"])
        return LiveSystem(
            container,
            spec,
            None,
            Facts(base=base),
            said=said,
            folder=None,
            fast=True,
            disk=False,
            closed=self._forget,
        )

    def _open(self, order: Order, fds: list[int]) -> tuple[Channel, dict[str, Any]]:
        if order.kind in self._told:
            channel, started = self._ask(order.short(), fds)
            if "unknown" not in started:
                return channel, started
            channel.close()
        found = self._ask(order.document(), fds)
        if order.kind:
            self._told.add(order.kind)
        return found

    def _ask(self, document: dict[str, Any], fds: list[int]) -> tuple[Channel, dict[str, Any]]:
        channel = self.supervisor.open(_START, document, fds)
        try:
            return channel, channel.result()
        except BaseException:
            channel.close()
            raise

    def _start_held(
        self, spec: SandboxSpec, order: Order, folder: Path | None, counters: list[int]
    ) -> LiveSystem:
        """A shell on our pipes holds it, and runs the commands."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        control = Control(PipeChannel(*ours), TailBuffer())
        try:
            try:
                channel, started = self._open(order, [*theirs, *counters])
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
        except BaseException:
            control.close()
            raise
        container = OciContainer(
            self,
            order,
            channel,
            started,
            said=control.said,
            counters=counters.pop() if counters else -1,
        )
        try:
            return self._meet(spec, container, control, started, folder)
        except BaseException:
            control.close()
            container.remove()
            raise

    def _meet(
        self,
        spec: SandboxSpec,
        container: OciContainer,
        control: Control,
        started: Mapping[str, Any],
        folder: Path | None,
    ) -> LiveSystem:
        base = dict(entry.partition("=")[::2] for entry in started["env"])
        facts, fast = Facts(base=base), False
        if started["shell"]:
            try:
                facts, fast = self._probe(control, base, folder)
            except ControlLost as exc:
                text = control.said.value().decode("utf-8", "replace").strip()
                msg = f"a sandbox from {spec.image} ended as soon as it was started: {text[-600:]}"
                raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor") from exc
        return LiveSystem(
            container,
            spec,
            control,
            facts,
            said=control.said,
            folder=folder,
            fast=fast,
            disk=False,
            closed=self._forget,
        )

    @staticmethod
    def _probe(
        control: Control, base: Mapping[str, str], folder: Path | None
    ) -> tuple[Facts, bool]:
        """Learn what the control shell is. The FIFOs are on this kernel: they always reach in."""
        facts = shell.parse_probe(control.call(shell.probe(), 30.0), base)
        return facts, folder is not None

    def _forget(self, system: LiveSystem) -> None:
        with self._lock:
            self._systems.discard(system)

    # --- what is left -----------------------------------------------------------------------

    def close_one(self, name: str) -> bool:
        """Close the sandbox of that name; False where it is none of this process."""
        with self._lock:
            found = next((system for system in self._systems if system.id == name), None)
        if found is not None:
            found.close()
        return found is not None

    def sweep(self, run: str) -> int:
        return leavings.sweep(self, run)

    def reap(self, is_dead: Callable[[Owner, float], bool]) -> int:
        return leavings.reap(self, is_dead)
