"""A command whose streams are ours: pipes, fed and read while it runs, and a channel that tells its
end.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.runtimes.leftovers import LEFTOVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.streams import TailBuffer

GONE: Final = 137
"""The status of a command whose sandbox ended under it."""


class CommandStreams:
    """Pipes of one command. `theirs` are the ends that it gets: stdin, stdout, stderr."""

    def __init__(self, job: Job) -> None:
        self._job = job
        stdin = os.pipe2(os.O_CLOEXEC) if job.input else (_null(), -1)
        outputs = [os.pipe2(os.O_CLOEXEC) for _ in job.captures]
        self.theirs = [stdin[0], outputs[0][1], outputs[-1][1]]
        self._stdin = stdin[1]
        self._input = memoryview(job.input or b"")
        self._outputs = dict(zip((one[0] for one in outputs), job.captures, strict=True))
        for descriptor in (*self._outputs, *([self._stdin] if self._stdin >= 0 else [])):
            os.set_blocking(descriptor, False)

    def begun(self) -> None:
        """The command has its ends: ours of them are closed."""
        for descriptor in set(self.theirs):
            os.close(descriptor)
        self.theirs = []

    def watch(
        self,
        channel: int,
        hear: Callable[[], None],
        going: Callable[[], bool],
        deadline: float | None,
        too_much: Callable[[], bool],
    ) -> bool:
        """Feed and read until the command is not `going`; `hear` takes what its `channel` says.

        False at the deadline, or when it wrote too much.
        """
        poller = select.poll()
        poller.register(channel, select.POLLIN)
        for descriptor in self._outputs:
            poller.register(descriptor, select.POLLIN)
        if self._stdin >= 0:
            poller.register(self._stdin, select.POLLOUT)
        while going():
            wait = None
            if deadline is not None:
                wait = (deadline - time.monotonic()) * 1000
                if wait <= 0:
                    return False
            for descriptor, _ in poller.poll(wait):
                if descriptor == channel:
                    hear()
                elif not self._serve(descriptor):
                    poller.unregister(descriptor)
            if too_much():
                return False
        for descriptor in list(self._outputs):  # what it wrote before its end
            while self._read(descriptor):
                pass
        return True

    def _serve(self, descriptor: int) -> bool:
        """Feed or read once; False when that descriptor is closed now."""
        if descriptor == self._stdin:
            more = self._feed()
            if not more:
                self._end_input()
            return more
        return self._read(descriptor) or descriptor in self._outputs

    def _feed(self) -> bool:
        """Whether there is more to write."""
        try:
            self._input = self._input[os.write(self._stdin, self._input[: 1 << 16]) :]
        except BlockingIOError:
            return True
        except OSError:
            self._input = memoryview(b"")
        return bool(self._input)

    def _end_input(self) -> None:
        os.close(self._stdin)
        self._stdin = -1

    def _read(self, descriptor: int) -> bool:
        """Read once; False where nothing is there now, or its end."""
        try:
            data = os.read(descriptor, 1 << 18)
        except BlockingIOError:
            return False
        if not data:
            del self._outputs[descriptor]
            os.close(descriptor)
            return False
        self._outputs[descriptor].feed(data)
        return True

    def close(self) -> Iterable[int]:
        """End the input; the outputs that are still open are the caller's now."""
        self.begun()
        if self._stdin >= 0:
            self._end_input()
        left, self._outputs = list(self._outputs), {}
        return left


class StreamedCommand:
    """What commands have in common, however they are started; see ExecCommand in live_system."""

    full = False
    lost = False

    def __init__(self, job: Job, said: TailBuffer, spent: Callable[[float], None]) -> None:
        """`said` takes what children of the command write after its end; `spent` is told the CPU
        seconds that it and its children used.
        """
        self._job = job
        self._said = said
        self._spent = spent
        self._streams: CommandStreams | None = None
        self._status: int | None = None

    def _watch(
        self,
        channel: int,
        hear: Callable[[], None],
        deadline: float | None,
        too_much: Callable[[], bool],
    ) -> bool:
        assert self._streams is not None
        return self._streams.watch(
            channel, hear, lambda: self._status is None, deadline, too_much
        )

    def _ended(self, message: Mapping[str, Any]) -> None:
        """Its end, as the channel tells it."""
        code = int(message["exit"])
        self._status = code if code >= 0 else 128 - code
        self._spent(float(message["cpu"]))

    def status(self) -> int:
        """As a shell has it; 137 for a command whose sandbox is gone."""
        return GONE if self._status is None else self._status

    def _let_go(self, *, runs: bool) -> None:
        """Its outputs are read no more; what its children still write is what the sandbox says."""
        for descriptor in self._streams.close() if self._streams is not None else ():
            if runs:
                os.close(descriptor)
            else:
                LEFTOVERS.add(descriptor, self._said)


def _null() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
