"""Docker, and whatever speaks its interface (Podman's socket too)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import threading
import time
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import (
    BuildFailed,
    ImageUnavailable,
    MissingDirectory,
    RuntimeUnavailable,
    SandboxError,
    UnknownUser,
)
from pytest_sandbox.runtimes import docker_images, docker_info, docker_quick, hold, reaper, shell
from pytest_sandbox.runtimes.base import Stats
from pytest_sandbox.runtimes.control import Control, ControlLost
from pytest_sandbox.runtimes.docker_connect import connect_any
from pytest_sandbox.runtimes.docker_stream import StreamRefused, open_stream
from pytest_sandbox.runtimes.docker_system import DockerSystem
from pytest_sandbox.runtimes.owner import owner_labels
from pytest_sandbox.runtimes.shell import FOLDER, Facts
from pytest_sandbox.runtimes.streams import TailBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_sandbox.limits import Limits
    from pytest_sandbox.runtimes.base import (
        BuildRequest,
        ImageInfo,
        Owner,
        RuntimeInfo,
        SandboxSpec,
    )
    from pytest_sandbox.runtimes.docker_context import Endpoint
    from pytest_sandbox.targets import Target

_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOSTNAME: Final = "sandbox"
_SHELL: Final = "/bin/sh"
_OVERHEAD: Final = 3
"""Init, the control shell and one worker: the sandbox's own processes do not count against its
limit.
"""


class _EndedAtOnce(Exception):
    """A new sandbox ended before it said a word; the text is what its init wrote."""


class DockerRuntime:
    """Sandboxes on a Docker-compatible engine; connects when it is first needed.

    `endpoint` like `unix:///run/docker.sock` goes before DOCKER_HOST, contexts and the usual
    sockets. `fast_path=False` makes every command a real exec.
    """

    name = "docker"

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
        self._fast_path = fast_path
        self._lock = threading.RLock()
        self._client: Any = None
        self._info: RuntimeInfo | None = None
        self._numbers = itertools.count(1)
        self._systems: set[DockerSystem] = set()
        self._networks: dict[str, str] = {}
        self._folder: Path | None = None
        self._nofile: int | None = None
        self._nproc: int | None = None
        self._no_disk_limit = False
        self._without_shell: set[str] = set()

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
                self._nofile = docker_quick.bound(self.endpoint.url, "Max open files")
            return self._info

    def close(self) -> None:
        with self._lock:
            systems = list(self._systems)
        for system in systems:
            with contextlib.suppress(SandboxError):
                system.close()
        with self._lock:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
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

        try:
            return docker_build.build(self.client, self.info(), self._clamped(request), say)
        except BuildFailed as failed:
            if not self._give_in(request.limits, failed.what):
                raise
        return docker_build.build(self.client, self.info(), self._clamped(request), say)

    def _clamped(self, request: BuildRequest) -> BuildRequest:
        if self._nofile is None:
            return request
        nofile = min(self._nofile, request.limits.nofile)
        return replace(request, limits=request.limits.override(nofile=nofile))

    def remove_image(self, reference: str) -> None:
        docker_images.remove_image(self.client, reference)

    def images(self) -> list[ImageInfo]:
        return docker_images.images(self.client)

    def commit(self, container: str, name: str | None, labels: Mapping[str, str]) -> str:
        """Make a snapshot of a container; its name."""
        return docker_images.commit(self.client, container, name, labels)

    # --- sandboxes ----------------------------------------------------------------------------

    def start(self, spec: SandboxSpec, owner: Owner) -> DockerSystem:
        import docker.errors
        import requests.exceptions

        try:
            return self._start(spec, owner)
        except docker.errors.ImageNotFound as exc:
            msg = f"image {spec.image} is not on the engine"
            raise ImageUnavailable(msg, next_step="build or pull it first") from exc
        except (docker.errors.APIError, StreamRefused) as exc:
            raise self._start_error(spec, str(getattr(exc, "explanation", None) or exc)) from exc
        except _EndedAtOnce as exc:
            msg = f"a sandbox from {spec.image} ended as soon as it was started: {exc}"
            raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc
        except (requests.exceptions.RequestException, docker.errors.DockerException) as exc:
            msg = f"the engine failed while it started a sandbox: {exc}"
            raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc

    def _start_error(self, spec: SandboxSpec, text: str) -> SandboxError:
        if "unable to find user" in text:
            msg = f"user {spec.user!r} is unknown in {spec.image}"
            return UnknownUser(msg)
        if "chdir to cwd" in text:
            msg = f"cwd {spec.cwd!r} is no directory in {spec.image}"
            return MissingDirectory(msg)
        if "container-init binary not found" in text or "docker-init" in text:
            msg = "the engine has no init program for its containers"
            return RuntimeUnavailable(msg, next_step="install catatonit (Podman) or tini (Docker)")
        msg = f"the engine could not start a sandbox from {spec.image}: {text[:600]}"
        return RuntimeUnavailable(msg, next_step="look at the engine's own log")

    def _start(self, spec: SandboxSpec, owner: Owner) -> DockerSystem:
        import docker.errors

        client = self.client
        number = next(self._numbers)
        name = f"pytest-sandbox-{_word(owner.run)[:8]}-{owner.pid}-{number}-{secrets.token_hex(3)}"
        folder: Path | None = None
        network = self._network(spec, owner)
        container = ""
        control: Control | None = None
        try:
            while True:
                if folder is None and (self._fast_path or spec.image in self._without_shell):
                    folder = self._system_folder(owner, name)
                settings = self._settings(spec, owner, network, folder)
                try:
                    container = client.create_container_from_config(settings, name)["Id"]
                    control = self._attach_and_start(container)
                    return self._meet(container, spec, control, folder, network)
                except (docker.errors.APIError, StreamRefused, _EndedAtOnce) as exc:
                    text = str(getattr(exc, "explanation", None) or exc)
                    lacking = self._lacks_shell(spec.image, text)
                    if not (lacking or self._give_in(spec.limits, text)):
                        raise
                if control is not None:
                    control.close()
                if container:
                    self.remove_container(container)
                    container = ""
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder = None
        except BaseException:
            if control is not None:
                control.close()
            if container:
                with contextlib.suppress(Exception):
                    self.remove_container(container)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self._drop_network(spec, network)
            raise

    def _lacks_shell(self, image: str, text: str) -> bool:
        """Note that an image has no shell, if that is what the engine says."""
        words = (f'"{_SHELL}"', f"exec {_SHELL} failed", "failed to exec pid1: No such file")
        missing = any(word in text for word in words)
        if not missing or image in self._without_shell:
            return False
        self._without_shell.add(image)
        return True

    def _give_in(self, limits: Limits, text: str) -> bool:
        """Adapt to what the engine cannot do; True when it is worth another try."""
        low = text.lower()
        import resource

        if "rlimit type 6" in low and self._nproc is None:
            # Podman asks for more processes of a user than it may give; the pids limit counts.
            own = docker_quick.bound(self.endpoint.url, "Max processes")
            self._nproc = own or resource.getrlimit(resource.RLIMIT_NPROC)[1]
            return True
        if "rlimit" in low:
            own = min(limits.nofile, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            if self._nofile is None or own < self._nofile:
                self._nofile = own
                return True
        if (
            "storage-opt" in low or "storage opt" in low or "pquota" in low
        ) and not self._no_disk_limit:
            self._no_disk_limit = True
            return True
        if self._fast_path and "pytest-sandbox-" in low and "bind source path" in low:
            self._fast_path = False  # the engine sees another file system
            return True
        return False

    def _settings(
        self, spec: SandboxSpec, owner: Owner, network: str, folder: Path | None
    ) -> dict[str, Any]:
        limits, info = spec.limits, self.info()
        nofile = limits.nofile if self._nofile is None else min(self._nofile, limits.nofile)
        mounts = [
            {"Type": "bind", "Source": str(m.source), "Target": m.target, "ReadOnly": m.read_only}
            for m in spec.mounts
        ]
        if folder is not None:
            mounts.append(
                {"Type": "bind", "Source": str(folder), "Target": FOLDER, "ReadOnly": True}
            )
        ulimits = [{"Name": "nofile", "Soft": nofile, "Hard": nofile}]
        if self._nproc is not None:
            ulimits.append({"Name": "nproc", "Soft": self._nproc, "Hard": self._nproc})
        host: dict[str, Any] = {
            "AutoRemove": True,
            "Init": True,
            "Memory": limits.memory,
            "MemorySwap": limits.memory,
            "NanoCpus": int(min(limits.cpus, info.cpus) * 1e9),
            "PidsLimit": limits.pids + _OVERHEAD,
            "Ulimits": ulimits,
            "NetworkMode": network,
            "Mounts": mounts,
            "Tmpfs": {path: f"size={size},exec" for path, size in spec.tmpfs.items()},
            "LogConfig": {"Type": "none", "Config": {}},
        }
        if spec.no_new_privileges:
            host["SecurityOpt"] = ["no-new-privileges"]
        if self.disk_limited():
            host["StorageOpt"] = {"size": str(limits.disk)}
        main = _SHELL
        if spec.image in self._without_shell and folder is not None:
            main = f"{FOLDER}/{hold.NAME}"
            program = folder / hold.NAME
            program.write_bytes(hold.program(spec.target.arch))
            program.chmod(0o755)
        settings: dict[str, Any] = {
            "Image": spec.image,
            "Entrypoint": [main],
            "Cmd": [],
            "User": spec.user,
            "WorkingDir": "/",
            "Hostname": _HOSTNAME,
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "OpenStdin": True,
            "StdinOnce": True,
            "Healthcheck": {"Test": ["NONE"]},
            "Labels": {**spec.labels, **owner_labels(owner, time.time())},
            "HostConfig": host,
        }
        docker_quick.leave_networking_out(settings, folder)
        return settings

    def disk_limited(self) -> bool:
        """Whether sandboxes get a limit on their disk."""
        return self.info().disk_limit and not self._no_disk_limit

    def _attach_and_start(self, container: str) -> Control:
        everything = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        stream = open_stream(
            self.endpoint, self.client, f"/containers/{container}/attach", query=everything
        )
        control = Control(stream, TailBuffer())
        try:
            self.client.start(container)
        except BaseException:
            control.close()
            raise
        return control

    def _meet(
        self,
        container: str,
        spec: SandboxSpec,
        control: Control,
        folder: Path | None,
        network: str,
    ) -> DockerSystem:
        """Learn what the control shell is, and whether FIFOs reach into the sandbox."""
        config = self.client.inspect_container(container)["Config"]
        base = {"PATH": _DEFAULT_PATH, "HOSTNAME": config.get("Hostname") or _HOSTNAME}
        base.update(entry.partition("=")[::2] for entry in config.get("Env") or ())
        fast = False
        facts = Facts(base=base)
        try:
            if spec.image in self._without_shell:
                pass
            elif folder is None:
                facts = shell.parse_probe(control.call(shell.probe(), 30.0), base)
            else:
                knock = folder / "knock"
                os.mkfifo(knock)
                knock.chmod(0o666)
                descriptor = os.open(knock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    facts = shell.parse_probe(control.call(shell.probe("knock"), 30.0), base)
                    with contextlib.suppress(BlockingIOError):
                        fast = os.read(descriptor, 16) == b"hello\n"
                finally:
                    os.close(descriptor)
                    knock.unlink()
        except ControlLost as exc:
            raise _EndedAtOnce(control.said.value().decode("utf-8", "replace")) from exc
        system = DockerSystem(
            self,
            container,
            spec,
            control,
            facts,
            folder=folder,
            fast=fast,
            said=control.said,
            network=network,
            disk=self.disk_limited(),
        )
        with self._lock:
            self._systems.add(system)
        return system

    def _system_folder(self, owner: Owner, name: str) -> Path:
        with self._lock:
            if self._folder is None or not self._folder.is_dir():
                self._folder = reaper.make_run_folder(owner)
            folder = self._folder / name
        folder.mkdir()
        folder.chmod(0o711)
        return folder

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

    def forget(self, system: DockerSystem) -> None:
        """A system was closed."""
        with self._lock:
            self._systems.discard(system)
        self._drop_network(system.spec, system.network)

    def _drop_network(self, spec: SandboxSpec, network: str) -> None:
        """Remove a network that one sandbox had for itself."""
        import docker.errors

        if spec.network == "bridge" and self.info().name == "podman":
            with contextlib.suppress(docker.errors.APIError):
                self.client.remove_network(network)

    def remove_container(self, container: str) -> None:
        """Kill and remove a container at once; one that is gone is no error."""
        reaper.remove_container(self.client, container)

    def is_running(self, container: str) -> bool:
        """Whether a container runs."""
        import docker.errors

        try:
            return bool(self.client.inspect_container(container)["State"]["Running"])
        except docker.errors.APIError:
            return False

    def was_out_of_memory(self, container: str, seconds: float, patience: float = 0.0) -> bool:
        """Whether the engine recorded in the last `seconds` that the memory limit killed something.

        With `patience` the container is ending: its end is waited for, and only what was killed
        within 2 s before it counts.
        """
        import docker.errors

        deadline = time.monotonic() + patience
        while True:
            try:
                events = self.client.events(
                    since=int(time.time() - seconds) - 1,
                    until=int(time.time()) + 1,
                    filters={"container": container, "event": ["oom", "die"]},
                )
                found = [json.loads(line) for line in _lines(events)]
            except (docker.errors.APIError, ValueError):
                return False
            ends = [event["timeNano"] for event in found if event.get("status") == "die"]
            kills = [event["timeNano"] for event in found if event.get("status") == "oom"]
            if patience == 0.0 or (ends and kills):
                return any(not ends or ends[0] - at < 2e9 for at in kills)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

    def container_stats(self, container: str) -> Stats:
        """Use of resources by the engine's own interface."""
        found = self.client.stats(container, stream=False)
        memory, cpu = found.get("memory_stats", {}), found.get("cpu_stats", {})
        written = sum(
            entry["value"]
            for entry in found.get("blkio_stats", {}).get("io_service_bytes_recursive") or ()
            if entry["op"].lower() == "write"
        )
        return Stats(
            int(memory.get("max_usage") or memory.get("usage") or 0),
            cpu.get("cpu_usage", {}).get("total_usage", 0) / 1e9,
            written,
        )

    # --- what is left -------------------------------------------------------------------------

    def sweep(self, run: str) -> int:
        count = reaper.sweep(self.client, run)
        with self._lock:
            self._networks.pop(run, None)
        return count

    def reap(self, is_dead: Callable[[Owner, float], bool]) -> int:
        return reaper.reap(self.client, is_dead)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "run"


def _lines(chunks: Any) -> list[bytes]:
    return [line for line in b"".join(chunks).split(b"\n") if line.strip()]
