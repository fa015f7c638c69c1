"""The slow path: one command as a real exec of the engine."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import MissingDirectory, RuntimeUnavailable, UnknownUser
from pytest_sandbox.runtimes import docker_files, shell
from pytest_sandbox.runtimes.docker_stream import Channel, StreamRefused, open_stream
from pytest_sandbox.runtimes.streams import Demultiplexer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.docker_context import Endpoint
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.shell import Facts

_ENGINE_TEXT: Final = re.compile(
    rb"\A(?:OCI runtime exec failed|exec failed|unable to find (?:user|group)|"
    rb"uids and gids must be in range|\s*exec [^\n]{1,4096}: exec format error|"
    rb"unable to start container process|Error: (?:runc|crun|OCI runtime))[^\n]*\n?"
)
_POLL: Final = 0.05
"""While nothing is written, ask the engine this often whether the command ended (seconds)."""


class ExecCommand:
    """A command started by the engine, its streams demultiplexed by us."""

    def __init__(
        self, client: Any, endpoint: Endpoint, container: str, job: Job, facts: Facts
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._container = container
        self._job = job
        self._facts = facts
        self._exec = ""
        self._channel: Channel | None = None
        self._frames = Demultiplexer()
        self._input = memoryview(job.input or b"")
        self._ended = False
        self._refused = ""

    def begin(self) -> bool:
        """Start it; True when it ended already (it could not be started). Raises for the engine's
        own failures.
        """
        import docker.errors

        job = self._job
        try:
            created = self._client.exec_create(
                self._container,
                self._argv(),
                stdin=job.input is not None,
                environment=dict(job.env),
                user=job.user,
                workdir=job.cwd,
            )
            self._exec = created["Id"]
            self._channel = open_stream(
                self._endpoint,
                self._client,
                f"/exec/{self._exec}/start",
                body={"Tty": False, "Detach": False},
            )
        except (docker.errors.APIError, StreamRefused) as exc:
            self._refused = str(getattr(exc, "explanation", None) or exc)
            self._ended = True
            return True
        if job.input is not None and not self._input:
            self._channel.end_input()
        return False

    def _argv(self) -> list[str]:
        job, facts = self._job, self._facts
        argv = list(job.argv)
        if not facts.kind:
            return argv
        # A shell in between drops its own variables again, so that both paths give the same
        # environment.
        start = "unset PWD OLDPWD SHLVL;exec"
        if facts.kind != "plain" and facts.env:
            start = f"exec {facts.env} -u PWD -u OLDPWD -u SHLVL -u _"
        if shell.has_odd_bytes(argv):
            return shell.spelled(argv, start, " 2>&1" if job.merge else "")
        if job.merge:
            return ["/bin/sh", "-c", f'{start} "$@" 2>&1', "sh", *argv]
        return argv

    def watch(self, deadline: float | None, too_much: Callable[[], bool]) -> bool:
        """Read until the command ended: True; False when the deadline or `too_much` comes first."""
        channel, idle = self._channel, 0.0
        while channel is not None and not self._ended:
            wait = _POLL
            if deadline is not None:
                wait = min(wait, deadline - time.monotonic())
                if wait <= 0:
                    return False
            if self._input:
                sent = channel.send_some(self._input[: 1 << 16])
                self._input = memoryview(b"") if sent is None else self._input[sent:]
                if not self._input:
                    channel.end_input()
                wait = 0.0 if sent else min(wait, 0.005)
            if channel.wait(wait):
                idle = 0.0
                data = channel.recv(1 << 18)
                if not data:
                    self._ended = True
                    break
                self._take(data)
                if too_much():
                    return False
                continue
            idle += wait
            if idle >= _POLL and not self.running():
                # It ended, and a child of it holds its output: what is there is read, the rest is
                # the child's.
                while channel.wait(0.02) and (data := channel.recv(1 << 18)):
                    self._take(data)
                self._ended = True
        return True

    def _take(self, data: bytes) -> None:
        captures = self._job.captures
        for stream, payload in self._frames.feed(data):
            captures[1 if stream == 2 and len(captures) > 1 else 0].feed(payload)

    def _inspect(self) -> dict[str, Any]:
        if not self._exec:
            return {}
        import docker.errors

        try:
            found = self._client.exec_inspect(self._exec)
        except docker.errors.APIError:
            return {}
        return dict(found)

    def running(self) -> bool:
        """Whether the engine says that it runs."""
        return bool(self._inspect().get("Running"))

    def pid(self) -> int:
        """Its pid inside the sandbox, where the engine runs on this kernel; else 0."""
        outer = int(self._inspect().get("Pid") or 0)
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{outer}/status").read_text(encoding="ascii", errors="replace")
            for line in text.splitlines():
                if line.startswith("NSpid:"):
                    return int(line.split()[-1]) if len(line.split()) > 2 else 0
        return 0

    def status(self) -> int:
        """The exit status. Raises UnknownUser, MissingDirectory, RuntimeUnavailable; engine text
        leaves stdout.
        """
        if self._refused:
            return self._failed(self._refused)
        code: int | None = None
        deadline = time.monotonic() + 10
        while code is None and time.monotonic() < deadline:
            found = self._inspect()
            if not found:
                return 137
            if not found.get("Running"):
                code = found.get("ExitCode")
            if code is None:
                time.sleep(0.01)
        if code is None:
            return 137
        for capture in self._job.captures if code in {1, 125, 126, 127, 128, 255} else ():
            if capture.total < 4096 and (match := _ENGINE_TEXT.match(capture.value())):
                text = match[0].decode("utf-8", "replace").strip()
                capture.clear()
                return self._failed(text)
        return code

    def _failed(self, text: str) -> int:
        """Tell a command that cannot be started from an engine that fails."""
        name = self._job.argv[0]
        stderr = self._job.captures[-1]
        low = text.lower()
        if any(
            word in low
            for word in (
                "unable to find user",
                "unable to find group",
                "no matching entries in",
                "uids and gids must be in range",
            )
        ):
            msg = f"user {self._job.user!r} is unknown in the sandbox"
            raise UnknownUser(msg)
        if "chdir" in low or "is not an absolute path" in low:
            self._missing_directory()
        found = docker_files.stat(self._client, self._container, self._job.cwd)
        if found is not None and not found.link and found.mode & 0o170000 != 0o040000:
            self._missing_directory()
        if "not found" in low or "no such file or directory" in low:
            stderr.feed(f"{name}: not found\n".encode("utf-8", "surrogateescape"))
            return 127
        if any(
            word in low for word in ("permission denied", "exec format error", "is a directory")
        ):
            stderr.feed(f"{name}: cannot be executed\n".encode("utf-8", "surrogateescape"))
            return 126
        if "resource temporarily unavailable" in low or "cannot allocate" in low:
            stderr.feed(b"[pytest-sandbox: cannot fork in the sandbox]\n")
            return 126
        msg = f"the engine could not start {name!r}: {text[:500]}"
        raise RuntimeUnavailable(msg, next_step="look at the engine's own log")

    def _missing_directory(self) -> None:
        msg = f"cwd {self._job.cwd!r} is no directory in the sandbox"
        raise MissingDirectory(msg)

    full = False
    lost = False

    def kill(self) -> bool | None:
        """Nobody in the sandbox does it for the engine."""
        return None

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
