"""The commands of runc and crun, and what their errors mean."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import MissingDirectory, RuntimeUnavailable, SandboxError
from pytest_sandbox.oci.waiting import ended

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT: Final = 60.0
_GO: Final = {"GOGC": "off", "GOMAXPROCS": "1"}
"""For programs in Go that live 30 ms: without collecting and other threads runc takes 8 % less."""
_STARTING: Final = "start the sandbox"
_NOT_FOUND: Final = re.compile(
    r"executable file not found|no such file or directory|not found in \$PATH", re.IGNORECASE
)
_NOT_EXECUTABLE: Final = re.compile(
    r"permission denied|exec format error|is a directory|operation not permitted", re.IGNORECASE
)


class EngineCli:
    """One engine with its folder of states; `folder` is private to a supervisor."""

    def __init__(self, program: str, states: str, *, rootless: bool) -> None:
        self._program = program
        self._states = states
        self._rootless = rootless

    def run(
        self,
        words: Sequence[str],
        *,
        log: str,
        stdio: Sequence[int] = (),
        what: str,
    ) -> None:
        """Run one command. Raises RuntimeUnavailable with the engine's own words."""
        import subprocess

        command = [self._program, "--root", self._states, "--log", log, "--log-format", "json"]
        if self._rootless:
            command += ["--rootless=true"] if "runc" in Path(self._program).name else []
        stdin, stdout, stderr = stdio or (subprocess.DEVNULL,) * 3
        process = subprocess.Popen(
            [*command, *words],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **_GO},
        )
        if not ended(process.pid, _TIMEOUT):
            process.kill()
            process.wait()
            msg = f"{Path(self._program).name} did not {what} within {_TIMEOUT:g} s"
            raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor")
        failed = process.wait()
        if "crun" in Path(self._program).name and os.geteuid() == 0:
            # Until 2025 (containers/crun#1847) it gave its stdio, the machine's /dev/null too, to
            # the sandbox's root. An ordinary user is root of its own ids only: it cannot have done
            # so, and this cannot undo it.
            with contextlib.suppress(PermissionError):
                os.chown(os.devnull, 0, 0)
        if failed:
            raise EngineRefused(what, said(log), Path(self._program).name)

    def start(self, name: str, pid: int, *, log: str) -> None:
        """Let the process of a created container run. Raises RuntimeUnavailable.

        `runc start` only opens the FIFO that the process waits at, reads its byte and removes the
        FIFO; done here, it takes 0.2 ms in place of 20. Where there is none, the engine does it.
        """
        fifo = self.state(name) / "exec.fifo"
        if Path(self._program).name != "runc" or not fifo.is_fifo():
            self.run(["start", name], log=log, what=_STARTING)
            return
        try:
            process = os.pidfd_open(pid)  # before the FIFO: the process may end at once
        except ProcessLookupError:
            raise EngineRefused(_STARTING, said(log), "runc") from None
        try:
            reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not _wrote(reader, process):
                    raise EngineRefused(_STARTING, said(log), "runc")
            finally:
                os.close(reader)
        finally:
            os.close(process)
        fifo.unlink(missing_ok=True)  # it may have ended, and be cleared away

    def state(self, name: str) -> Path:
        """The folder of one container's state."""
        return Path(self._states, name)


def _wrote(reader: int, process: int) -> bool:
    """Whether the process wrote its byte into the FIFO, and did not end before that."""
    poller = select.poll()
    for descriptor in (reader, process):
        poller.register(descriptor, select.POLLIN)
    found = [descriptor for descriptor, _ in poller.poll(_TIMEOUT * 1000)]
    return reader in found and bool(os.read(reader, 1))


class EngineRefused(SandboxError):
    """An engine's own failure; `text` is what it said."""

    def __init__(self, what: str, text: str = "", engine: str = "") -> None:
        super().__init__(
            f"{engine} could not {what}: {text or 'it said nothing'}" if text else what
        )
        self.text = text


def said(log: str) -> str:
    """The errors of an engine's JSON log, the last one first."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry: dict[str, Any] = json.loads(line)
                if entry.get("level") in {"error", "fatal"} and entry.get("msg"):
                    lines.append(str(entry["msg"]))
    return "; ".join(dict.fromkeys(reversed(lines)))[:1000]


def start_error(refused: EngineRefused) -> SandboxError:
    """What a refused start means to the caller."""
    text = refused.text
    if "chdir to cwd" in text or "cwd" in text:
        return MissingDirectory(refused.what)
    return RuntimeUnavailable(refused.what, next_step="run pytest-sandbox doctor")


def exec_status(text: str) -> int | None:
    """126 or 127 where a command could not be started for its own sake; None for anything else."""
    if "chdir" in text or "cwd" in text:
        return None
    if _NOT_FOUND.search(text):
        return 127
    if _NOT_EXECUTABLE.search(text):
        return 126
    return None


def make_states(room: str) -> str:
    """The folder of the engine's states in a supervisor's room."""
    folder = os.path.join(room, "states")  # noqa: PTH118
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o711)  # noqa: PTH102
    return folder
