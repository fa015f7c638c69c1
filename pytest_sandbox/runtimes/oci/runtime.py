"""Sandboxes and images without a daemon: a registry client, a store, and runc or crun."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import threading
from typing import IO, TYPE_CHECKING

from pytest_sandbox.errors import ImageUnavailable, SandboxError
from pytest_sandbox.folders import data_folder
from pytest_sandbox.runtimes.oci import leavings
from pytest_sandbox.runtimes.oci.machine import Machine, find_machine
from pytest_sandbox.runtimes.oci.start import Starts
from pytest_sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.cgroup_usage import Usage
    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.oci.supervisor import Supervisor
    from pytest_sandbox.runtimes.base import (
        BuildRequest,
        ImageInfo,
        Owner,
        RuntimeInfo,
        SandboxSpec,
        Stats,
    )
    from pytest_sandbox.runtimes.live_system import LiveSystem
    from pytest_sandbox.runtimes.oci.container import OciContainer
    from pytest_sandbox.targets import Target


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
        self._starts = Starts(self)

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
        self._starts.close()
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
        system = self._starts.start(spec, image, name, owner)
        with self._lock:
            self._systems.add(system)
        return system

    def forget(self, system: LiveSystem) -> None:
        """It is closed."""
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
