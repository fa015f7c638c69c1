"""The slow path: one command as a real exec of the engine, its streams read by us."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.runtimes.leftovers import LEFTOVERS
from pytest_sandbox.runtimes.oci.members import inner_pid

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.supervisor import Channel, Supervisor
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.streams import Capture, TailBuffer

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
        self._outputs: dict[int, Capture] = {}
        self._stdin = -1
        self._input = memoryview(job.input or b"")
        self._status: int | None = None
        self._host_pid = 0

    def begin(self) -> bool:
        job = self._job
        stdin = os.pipe2(os.O_CLOEXEC) if job.input else (os.open(os.devnull, os.O_RDONLY), -1)
        outputs = [os.pipe2(os.O_CLOEXEC) for _ in job.captures]
        theirs = [stdin[0], outputs[0][1], outputs[-1][1]]
        self._stdin = stdin[1]
        self._outputs = dict(zip((o[0] for o in outputs), job.captures, strict=True))
        for descriptor in (*self._outputs, *([self._stdin] if self._stdin >= 0 else [])):
            os.set_blocking(descriptor, False)
        try:
            self._channel = self._supervisor.open(_JOB, self._args, theirs)
        finally:
            for descriptor in {stdin[0], *(o[1] for o in outputs)}:
                os.close(descriptor)
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
        while self._status is None:
            wait = None
            if deadline is not None:
                wait = (deadline - time.monotonic()) * 1000
                if wait <= 0:
                    return False
            poller = select.poll()
            poller.register(self._channel.fileno(), select.POLLIN)
            for descriptor in self._outputs:
                poller.register(descriptor, select.POLLIN)
            if self._input:
                poller.register(self._stdin, select.POLLOUT)
            elif self._stdin >= 0:
                self._end_input()
            for descriptor, _ in poller.poll(wait):
                self._serve(descriptor)
            if too_much():
                return False
        for descriptor in list(self._outputs):  # what it wrote before its end
            while self._read(descriptor):
                pass
        return True

    def _serve(self, descriptor: int) -> None:
        assert self._channel is not None
        if descriptor == self._channel.fileno():
            self._hear()
        elif descriptor == self._stdin:
            self._feed()
        else:
            self._read(descriptor)

    def _hear(self) -> None:
        assert self._channel is not None
        received = self._channel.receive()
        if received is None:
            self._status = 137
        elif "exit" in received[0]:
            code = int(received[0]["exit"])
            self._status = code if code >= 0 else 128 - code
            self._spent(float(received[0]["cpu"]))

    def _feed(self) -> None:
        try:
            self._input = self._input[os.write(self._stdin, self._input[: 1 << 16]) :]
        except BlockingIOError:
            return
        except OSError:
            self._input = memoryview(b"")
        if not self._input:
            self._end_input()

    def _end_input(self) -> None:
        os.close(self._stdin)
        self._stdin = -1

    def _read(self, descriptor: int) -> bool:
        """Read once; False where nothing is there now."""
        try:
            data = os.read(descriptor, 1 << 18)
        except BlockingIOError:
            return False
        if not data:
            del self._outputs[descriptor]
            os.close(descriptor)
            return False
        self._job.captures[-1 if self._job.merge else self._index(descriptor)].feed(data)
        return True

    def _index(self, descriptor: int) -> int:
        return next(i for i, c in enumerate(self._job.captures) if c is self._outputs[descriptor])

    def status(self) -> int:
        return 137 if self._status is None else self._status

    def running(self) -> bool:
        return self._host_pid != 0 and self._status is None

    def pid(self) -> int:
        """Its pid inside the sandbox; 0 for none."""
        return inner_pid(self._host_pid) if self._host_pid else 0

    def close(self) -> None:
        """Close everything; a command that runs on is killed."""
        for descriptor in self._outputs:
            if self.running():
                os.close(descriptor)
            else:
                LEFTOVERS.add(descriptor, self._said)
        self._outputs = {}
        if self._stdin >= 0:
            self._end_input()
        if self._channel is not None:
            if self._status is not None and self._host_pid:
                with contextlib.suppress(OSError):
                    self._channel.leave()
            self._channel.close()
