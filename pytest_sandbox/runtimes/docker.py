"""Docker, and whatever speaks its interface (Podman's socket too)."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from pytest_sandbox.errors import BuildFailed, SandboxError
from pytest_sandbox.runtimes import docker_images, docker_info, reaper
from pytest_sandbox.runtimes.docker_adapt import Adapted
from pytest_sandbox.runtimes.docker_connect import connect_any
from pytest_sandbox.runtimes.docker_start import Starter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.runtimes.base import (
        BuildRequest,
        ImageInfo,
        Owner,
        RuntimeInfo,
        SandboxSpec,
    )
    from pytest_sandbox.runtimes.docker_context import Endpoint
    from pytest_sandbox.runtimes.live_system import LiveSystem
    from pytest_sandbox.targets import Target


class DockerRuntime:
    """Sandboxes on a Docker-compatible engine; connects when it is first needed.

    `endpoint` like `unix:///run/docker.sock` goes before DOCKER_HOST, contexts and the usual
    sockets. `fast_path=False` makes every command a real exec.
    """

    name = "docker"
    starts_ahead = True

    def __init__(
        self,
        endpoint: str = "",
        *,
        environ: Mapping[str, str] | None = None,
        fast_path: bool = True,
    ) -> None:
        self._wanted = endpoint
        self._found: Endpoint | None = None
        self._environ = dict(os.environ if environ is None else environ)
        self.fast_path = fast_path
        self._lock = threading.RLock()
        self._client: Any = None
        self._info: RuntimeInfo | None = None
        self._systems: set[LiveSystem] = set()
        self._networks: dict[str, str] = {}
        self._adapted = Adapted(fast_path=fast_path)
        self._starter = Starter(self, self._adapted)

    # --- the engine ---------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The SDK's low-level client. Raises RuntimeUnavailable."""
        with self._lock:
            if self._client is None:
                self._client, self._found = connect_any(self._environ, self._wanted)
            return self._client

    @property
    def endpoint(self) -> Endpoint:
        """Where the engine answers. Raises RuntimeUnavailable."""
        with self._lock:
            if self._found is None:
                self.client  # noqa: B018 - it connects
            assert self._found is not None
            return self._found

    def info(self) -> RuntimeInfo:
        with self._lock:
            if self._info is None:
                self._info = docker_info.engine_info(self.client, self.endpoint.url)
                self._adapted.meet(self.endpoint.url)
            return self._info

    def close(self) -> None:
        with self._lock:
            systems = list(self._systems)
        for system in systems:
            with contextlib.suppress(SandboxError):
                system.close()
        with self._lock:
            self._starter.close()
            if self._client is not None:
                self._client.close()
                self._client = None

    # --- images -------------------------------------------------------------------------------

    def find_image(self, reference: str) -> ImageInfo | None:
        return docker_images.find_image(self.client, reference)

    def pull(self, reference: str, target: Target, say: Callable[[str], None]) -> ImageInfo:
        return docker_images.pull(self.client, reference, target, say)

    def load_rootfs(
        self, tar: IO[bytes], reference: str, target: Target, labels: Mapping[str, str]
    ) -> ImageInfo:
        return docker_images.load_rootfs(self.client, tar, reference, target, labels)

    def build(self, request: BuildRequest, say: Callable[[str], None]) -> ImageInfo:
        from pytest_sandbox.runtimes import docker_build

        info, adapted = self.info(), self._adapted

        def attempt() -> ImageInfo:
            clamped = replace(request, limits=adapted.clamp(request.limits))
            return docker_build.build(self.client, info, clamped, say)

        try:
            return attempt()
        except BuildFailed as failed:
            if not adapted.give_in(request.limits, failed.what):
                raise
        return attempt()

    def remove_image(self, reference: str) -> None:
        docker_images.remove_image(self.client, reference)

    def images(self) -> list[ImageInfo]:
        return docker_images.images(self.client)

    def commit(self, container: str, name: str | None, labels: Mapping[str, str]) -> str:
        """Make a snapshot of a container; its name."""
        return docker_images.commit(self.client, container, name, labels)

    # --- sandboxes ----------------------------------------------------------------------------

    def start(self, spec: SandboxSpec, owner: Owner) -> LiveSystem:
        network = self._network(spec, owner)
        try:
            system = self._starter.start(spec, owner, network)
        except BaseException:
            self._drop_network(spec, network)
            raise
        with self._lock:
            self._systems.add(system)
        return system

    def disk_limited(self) -> bool:
        """Whether sandboxes get a limit on their disk."""
        return self.info().disk_limit and not self._adapted.no_disk_limit

    def _network(self, spec: SandboxSpec, owner: Owner) -> str:
        if spec.network != "bridge":
            return spec.network
        if self.info().name == "podman":
            # Its bridges cannot keep their members apart: each sandbox gets one of its own.
            return docker_images.make_network(self.client, owner)
        with self._lock:
            name = self._networks.get(owner.run)
            if name is None:
                name = docker_images.make_network(self.client, owner)
                self._networks[owner.run] = name
            return name

    def forget(self, system: LiveSystem, network: str) -> None:
        """A system was closed."""
        with self._lock:
            self._systems.discard(system)
        self._drop_network(system.spec, network)

    def _drop_network(self, spec: SandboxSpec, network: str) -> None:
        """Remove a network that one sandbox had for itself."""
        import docker.errors

        if spec.network == "bridge" and self.info().name == "podman":
            with contextlib.suppress(docker.errors.APIError):
                self.client.remove_network(network)

    def remove_container(self, container: str) -> None:
        """Kill and remove a container at once; one that is gone is no error."""
        reaper.remove_container(self.client, container)

    # --- what is left -------------------------------------------------------------------------

    def sweep(self, run: str) -> int:
        count = reaper.sweep(self.client, run)
        with self._lock:
            self._networks.pop(run, None)
        return count

    def reap(self, is_dead: Callable[[Owner, float], bool]) -> int:
        return reaper.reap(self.client, is_dead)
