"""The slow path: one command as a real exec of the engine, its streams read by us."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.runtimes.leftovers import LEFTOVERS
from pytest_sandbox.runtimes.oci.command_streams import CommandStreams
from pytest_sandbox.runtimes.oci.members import inner_pid

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.supervisor import Channel, Supervisor
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.streams import TailBuffer

_JOB = "pytest_sandbox.runtimes.oci.exec_job:run"


class OciExec:
    """One command; see ExecCommand in live_system for what the methods mean."""

    def __init__(
        self,
        supervisor: Supervisor,
        job: Job,
        args: dict[str, Any],
        *,
        said: TailBuffer,
        spent: Callable[[float], None],
    ) -> None:
        """`said` takes what children of the command write after its end; `spent` is told the CPU
        seconds that it and its children used.
        """
        self._supervisor = supervisor
        self._job = job
        self._args = args
        self._said = said
        self._spent = spent
        self._channel: Channel | None = None
        self._streams: CommandStreams | None = None
        self._status: int | None = None
        self._host_pid = 0

    def begin(self) -> bool:
        job = self._job
        self._streams = streams = CommandStreams(job)
        try:
            self._channel = self._supervisor.open(_JOB, self._args, streams.theirs)
        finally:
            streams.begun()
        answer = self._channel.result()
        if answer["status"]:
            name = job.argv[0]
            text = "not found" if answer["status"] == 127 else "cannot be executed"
            job.captures[-1].feed(f"{name}: {text}\n".encode("utf-8", "surrogateescape"))
            self._status = answer["status"]
            return True
        self._host_pid = answer["pid"]
        return False

    def watch(self, deadline: float | None, too_much: Callable[[], bool]) -> bool:
        assert self._channel is not None
        assert self._streams is not None
        return self._streams.watch(
            self._channel.fileno(), self._hear, lambda: self._status is None, deadline, too_much
        )

    def _hear(self) -> None:
        assert self._channel is not None
        received = self._channel.receive()
        if received is None:
            self._status = 137
        elif "exit" in received[0]:
            code = int(received[0]["exit"])
            self._status = code if code >= 0 else 128 - code
            self._spent(float(received[0]["cpu"]))

    def status(self) -> int:
        return 137 if self._status is None else self._status

    def running(self) -> bool:
        return self._host_pid != 0 and self._status is None

    def pid(self) -> int:
        """Its pid inside the sandbox; 0 for none."""
        return inner_pid(self._host_pid) if self._host_pid else 0

    full = False
    lost = False

    def kill(self) -> bool | None:
        """Nobody in the sandbox does it for the engine."""
        return None

    def close(self) -> None:
        """Close everything; a command that runs on is killed."""
        for descriptor in self._streams.close() if self._streams is not None else ():
            if self.running():
                os.close(descriptor)
            else:
                LEFTOVERS.add(descriptor, self._said)
        if self._channel is not None:
            if self._status is not None and self._host_pid:
                with contextlib.suppress(OSError):
                    self._channel.leave()
            self._channel.close()
