"""One command through process 1 of a sandbox that the direct launcher started."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import rebuild
from pytest_sandbox.runtimes.oci.command_streams import GONE, CommandStreams, StreamedCommand

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.streams import TailBuffer

_SETTLE = 5.0
"""Process 1 answers within so many seconds, or the sandbox has to end: something in it may have
stopped it.
"""


class AgentCommand(StreamedCommand):
    """See ExecCommand in live_system for what the methods mean."""

    def __init__(
        self,
        control: socket.socket,
        job: Job,
        message: dict[str, Any],
        *,
        said: TailBuffer,
        spent: Callable[[float], None],
    ) -> None:
        super().__init__(job, said, spent)
        self._control = control
        self._message = message
        self._channel: socket.socket | None = None
        self._killed: bool | None = None

    def begin(self) -> bool:
        self._streams = streams = CommandStreams(self._job)
        mine, theirs = messages.pair()
        self._channel = mine
        try:
            messages.send(self._control, self._message, [theirs.fileno(), *streams.theirs])
        except OSError:
            self.lost = True
            self._status = GONE
            return True
        finally:
            theirs.close()
            streams.begun()
        return False

    def watch(self, deadline: float | None, too_much: Callable[[], bool]) -> bool:
        assert self._channel is not None
        return self._watch(self._channel.fileno(), self._hear, deadline, too_much)

    def _hear(self) -> None:
        assert self._channel is not None
        received = None
        with contextlib.suppress(ConnectionError):
            received = messages.receive(self._channel)
        if received is None:
            self.lost = True  # the sandbox is gone, and the command with it
            self._status = GONE if self._status is None else self._status
            return
        message = received[0]
        if "exit" in message:
            self._ended(message)
        elif "failed" in message:
            self._status = 127
            raise rebuild(message["failed"], "command:command")
        elif "full" in message:
            self.full = True
            self._status = 126
        elif "errno" in message:
            raise OSError(message["errno"], os.strerror(message["errno"]))
        elif "killed" in message:
            self._killed = bool(message["killed"])

    def running(self) -> bool:
        return self._channel is not None and self._status is None

    def pid(self) -> int:
        return 0

    def kill(self) -> bool:
        """End all that the command started; False where something of it is left."""
        assert self._channel is not None
        self._killed = None
        try:
            messages.send(self._channel, {"kill": True})
            self._channel.settimeout(_SETTLE)
            while not self._answered():
                self._hear()
        except OSError:
            return self.lost
        return self._killed is not False

    def _answered(self) -> bool:
        """Whether it is known what became of it."""
        return self.lost or self._killed is not None

    def close(self) -> None:
        """Close everything; a command that runs on is killed."""
        self._let_go(runs=self.running())
        if self._channel is not None:
            self._channel.close()
            self._channel = None
