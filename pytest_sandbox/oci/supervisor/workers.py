"""Processes that do job after job: a fork for each costs more than what starts a sandbox.

A job that is marked as `repeatable` (see jobs.py) is done by an idle worker. Where there is none,
the supervisor forks, and the child stays as a worker.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.waiting import ended

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

_IDLE: Final = 16
"""So many wait for work at most."""
_PATIENCE: Final = 5.0
"""Seconds that one waits for work before it goes."""


class Worker:
    """One of them, as the supervisor sees it; `channel` is the way to it."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pid = 0
        self.job = ""
        """What it did last: what that needs is warm, or made ahead."""
        self.since = 0.0

    def give(self, message: dict[str, Any], reply: socket.socket, fds: Sequence[int]) -> None:
        """Give it a job. Raises OSError where it is gone."""
        self.job = message["job"]
        messages.send(self.channel, message, [reply.fileno(), *fds])


class Pool:
    """Those that wait for work, the one that waits longest first."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []

    def take(self, job: str) -> Worker | None:
        """The one that did this job last; None where none has, or all that have are at work."""
        for worker in reversed(self._idle):
            if worker.job == job:
                self._idle.remove(worker)
                return worker
        return None

    def put(self, worker: Worker) -> bool:
        """Let it wait; False where there are enough."""
        worker.since = time.monotonic()
        if len(self._idle) >= _IDLE:
            return False
        self._idle.append(worker)
        return True

    def forget(self, worker: Worker) -> None:
        """It is gone."""
        with contextlib.suppress(ValueError):
            self._idle.remove(worker)

    def tired(self) -> list[Worker]:
        """Those that have waited too long; they are let go."""
        until = time.monotonic() - _PATIENCE
        found = [worker for worker in self._idle if worker.since <= until]
        del self._idle[: len(found)]
        return found

    def patience(self) -> float | None:
        """Seconds until one will have waited too long; None without any."""
        if not self._idle:
            return None
        return max(self._idle[0].since + _PATIENCE - time.monotonic(), 0.0)

    def end(self) -> None:
        """End all that wait, and wait for their ends: they put away what they hold first."""
        for worker in self._idle:
            worker.channel.close()
        for worker in self._idle:
            if not ended(worker.pid, _PATIENCE):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)


def work(
    channel: socket.socket, do: Callable[[dict[str, Any], socket.socket, list[int]], bool]
) -> None:
    """In the worker: do jobs until the supervisor has no more, or one went wrong."""
    while True:
        try:
            messages.send(channel, {"idle": True})
            received = messages.receive(channel)
        except OSError:
            return
        if received is None:
            return
        message, (end, *fds) = received
        with messages.end_of(end) as reply:
            usable = do(message, reply, fds)
        for descriptor in fds:
            os.close(descriptor)
        if not usable:
            return
