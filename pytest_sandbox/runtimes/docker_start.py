"""Start one sandbox: its container, the stream to its control shell, the first words with it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import (
    ImageUnavailable,
    MissingDirectory,
    RuntimeUnavailable,
    SandboxError,
    UnknownUser,
)
from pytest_sandbox.runtimes import docker_quick, hold, reaper, shell
from pytest_sandbox.runtimes.control import Control, ControlLost
from pytest_sandbox.runtimes.docker_adapt import SHELL
from pytest_sandbox.runtimes.docker_container import DockerContainer
from pytest_sandbox.runtimes.docker_stream import StreamRefused, open_stream
from pytest_sandbox.runtimes.live_system import LiveSystem
from pytest_sandbox.runtimes.owner import owner_labels
from pytest_sandbox.runtimes.run_folder import RunFolder
from pytest_sandbox.runtimes.shell import FOLDER, Facts
from pytest_sandbox.runtimes.streams import TailBuffer

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.runtimes.base import Owner, SandboxSpec
    from pytest_sandbox.runtimes.docker import DockerRuntime
    from pytest_sandbox.runtimes.docker_adapt import Adapted

_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOSTNAME: Final = "sandbox"
_OVERHEAD: Final = 3
"""Init, the control shell and one worker: the sandbox's own processes do not count against its
limit.
"""


class _EndedAtOnce(Exception):
    """A new sandbox ended before it said a word; the text is what its init wrote."""


class Starter:
    """Starts the sandboxes of one runtime, and keeps the folder of their FIFOs."""

    def __init__(self, runtime: DockerRuntime, adapted: Adapted) -> None:
        self._runtime = runtime
        self._adapted = adapted
        self._numbers = itertools.count(1)
        self._folder = RunFolder()

    def close(self) -> None:
        """Remove the folder."""
        self._folder.close()

    def start(self, spec: SandboxSpec, owner: Owner, network: str) -> LiveSystem:
        """Start one. Raises ImageUnavailable, UnknownUser, RuntimeUnavailable."""
        import docker.errors
        import requests.exceptions

        try:
            return self._start(spec, owner, network)
        except docker.errors.ImageNotFound as exc:
            msg = f"image {spec.image} is not on the engine"
            raise ImageUnavailable(msg, next_step="build or pull it first") from exc
        except (docker.errors.APIError, StreamRefused) as exc:
            raise _start_error(spec, str(getattr(exc, "explanation", None) or exc)) from exc
        except _EndedAtOnce as exc:
            msg = f"a sandbox from {spec.image} ended as soon as it was started: {exc}"
            raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc
        except (requests.exceptions.RequestException, docker.errors.DockerException) as exc:
            msg = f"the engine failed while it started a sandbox: {exc}"
            raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc

    def _start(self, spec: SandboxSpec, owner: Owner, network: str) -> LiveSystem:
        import docker.errors

        client, adapted = self._runtime.client, self._adapted
        number = next(self._numbers)
        name = f"pytest-sandbox-{_word(owner.run)[:8]}-{owner.pid}-{number}-{secrets.token_hex(3)}"
        folder: Path | None = None
        container = ""
        control: Control | None = None
        try:
            while True:
                if folder is None and (adapted.fast_path or spec.image in adapted.without_shell):
                    folder = self._folder.make(owner, name)
                settings = self._settings(spec, owner, network, folder)
                try:
                    container = client.create_container_from_config(settings, name)["Id"]
                    control = self._attach_and_start(container)
                    return self._meet(container, spec, control, folder, network)
                except (docker.errors.APIError, StreamRefused, _EndedAtOnce) as exc:
                    text = str(getattr(exc, "explanation", None) or exc)
                    lacking = adapted.lacks_shell(spec.image, text)
                    if not (lacking or adapted.give_in(spec.limits, text)):
                        raise
                if control is not None:
                    control.close()
                if container:
                    reaper.remove_container(client, container)
                    container = ""
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder = None
        except BaseException:
            if control is not None:
                control.close()
            if container:
                with contextlib.suppress(Exception):
                    reaper.remove_container(client, container)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _settings(
        self, spec: SandboxSpec, owner: Owner, network: str, folder: Path | None
    ) -> dict[str, Any]:
        adapted, info = self._adapted, self._runtime.info()
        limits = adapted.clamp(spec.limits)
        mounts = [
            {"Type": "bind", "Source": str(m.source), "Target": m.target, "ReadOnly": m.read_only}
            for m in spec.mounts
        ]
        if folder is not None:
            mounts.append(
                {"Type": "bind", "Source": str(folder), "Target": FOLDER, "ReadOnly": True}
            )
        ulimits = [{"Name": "nofile", "Soft": limits.nofile, "Hard": limits.nofile}]
        if adapted.nproc is not None:
            ulimits.append({"Name": "nproc", "Soft": adapted.nproc, "Hard": adapted.nproc})
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
        if self._runtime.disk_limited():
            host["StorageOpt"] = {"size": str(limits.disk)}
        main = SHELL
        if spec.image in adapted.without_shell and folder is not None:
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

    def _attach_and_start(self, container: str) -> Control:
        everything = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        runtime = self._runtime
        path = f"/containers/{container}/attach"
        stream = open_stream(runtime.endpoint, runtime.client, path, query=everything)
        control = Control(stream, TailBuffer())
        try:
            runtime.client.start(container)
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
    ) -> LiveSystem:
        """Learn what the control shell is, and whether FIFOs reach into the sandbox."""
        config = self._runtime.client.inspect_container(container)["Config"]
        base = {"PATH": _DEFAULT_PATH, "HOSTNAME": config.get("Hostname") or _HOSTNAME}
        base.update(entry.partition("=")[::2] for entry in config.get("Env") or ())
        fast = False
        facts = Facts(base=base)
        try:
            if spec.image in self._adapted.without_shell:
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
        return LiveSystem(
            DockerContainer(self._runtime, container, network),
            spec,
            control,
            facts,
            said=control.said,
            folder=folder,
            fast=fast,
            disk=self._runtime.disk_limited(),
            closed=lambda system: self._runtime.forget(system, network),
        )


def _start_error(spec: SandboxSpec, text: str) -> SandboxError:
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


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "run"
