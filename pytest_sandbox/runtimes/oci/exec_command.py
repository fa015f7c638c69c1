"""The slow path: one command as a real exec of the engine, its streams read by us."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pytest_sandbox.runtimes.oci.command_streams import GONE, CommandStreams, StreamedCommand
from pytest_sandbox.runtimes.oci.members import inner_pid
from pytest_sandbox.runtimes.oci.programs import not_executed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.supervisor import Channel, Supervisor
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.streams import TailBuffer

_JOB = "pytest_sandbox.runtimes.oci.exec_job:run"


class OciExec(StreamedCommand):
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
        super().__init__(job, said, spent)
        self._supervisor = supervisor
        self._args = args
        self._channel: Channel | None = None
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
            job.captures[-1].feed(not_executed(job.argv[0], answer["status"]))
            self._status = answer["status"]
            return True
        self._host_pid = answer["pid"]
        return False

    def watch(self, deadline: float | None, too_much: Callable[[], bool]) -> bool:
        assert self._channel is not None
        return self._watch(self._channel.fileno(), self._hear, deadline, too_much)

    def _hear(self) -> None:
        assert self._channel is not None
        received = self._channel.receive()
        if received is None:
            self._status = GONE
        elif "exit" in received[0]:
            self._ended(received[0])

    def running(self) -> bool:
        return self._host_pid != 0 and self._status is None

    def pid(self) -> int:
        """Its pid inside the sandbox; 0 for none."""
        return inner_pid(self._host_pid) if self._host_pid else 0

    def kill(self) -> bool | None:
        """Nobody in the sandbox does it for the engine."""
        return None

    def close(self) -> None:
        """Close everything; a command that runs on is killed."""
        self._let_go(runs=self.running())
        if self._channel is not None:
            if self._status is not None and self._host_pid:
                with contextlib.suppress(OSError):
                    self._channel.leave()
            self._channel.close()
