"""One command through process 1 of a sandbox that the direct launcher started."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.runtimes.oci.agent import SETTLE, End
from pytest_sandbox.runtimes.oci.command_streams import GONE, CommandStreams, StreamedCommand
from pytest_sandbox.runtimes.oci.programs import not_executed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.oci.agent import Agent, Running
    from pytest_sandbox.runtimes.streams import TailBuffer


class AgentCommand(StreamedCommand):
    """See ExecCommand in live_system for what the methods mean."""

    def __init__(
        self,
        agent: Agent,
        job: Job,
        user: str,
        *,
        said: TailBuffer,
        spent: Callable[[float], None],
    ) -> None:
        """`user` is empty for the sandbox's own."""
        super().__init__(job, said, spent)
        self._agent = agent
        self._user = user
        self._command: Running | None = None
        self._failed = 0
        """126 or 127 where its program could not run."""

    def begin(self) -> bool:
        job = self._job
        self._streams = streams = CommandStreams(job)
        try:
            self._command = self._agent.begin(
                job.argv, job.env, job.cwd, self._user, streams.theirs
            )
        except BlockingIOError:
            self.full = True
            self._status = 126
            return True
        except ConnectionError:
            self.lost = True
            self._status = GONE
            return True
        finally:
            streams.begun()
        return False

    def watch(self, deadline: float | None, too_much: Callable[[], bool]) -> bool:
        assert self._command is not None
        return self._watch(self._command.channel.fileno(), self._hear, deadline, too_much)

    def _hear(self) -> None:
        assert self._command is not None
        try:
            told = self._agent.hear(self._command)
        except ConnectionError:
            self.lost = True  # the sandbox is gone, and the command with it
            self._status = GONE if self._status is None else self._status
        except OSError as wrong:
            self._status = 126
            if wrong.errno not in {errno.EAGAIN, errno.ENOMEM}:
                raise
            self.full = True
        except BaseException:
            self._status = 127
            raise
        else:
            if isinstance(told, End):
                self._ended({"exit": self._failed or told.code, "cpu": told.cpu})
            elif told:
                self._failed = told
                self._job.captures[-1].feed(not_executed(self._job.argv[0], told))

    def running(self) -> bool:
        return self._command is not None and self._status is None

    def pid(self) -> int:
        return 0

    def kill(self) -> bool:
        """End all that the command started; False where something of it is left."""
        assert self._command is not None
        try:
            if self._command.group is None and not self._command.pid:
                # Which process it is has to be known; it is said at once.
                self._command.channel.settimeout(SETTLE)
                with contextlib.suppress(SandboxError):
                    self._hear()
            return self._agent.kill(self._command)
        except TimeoutError:
            return False
        except OSError as wrong:
            # The sandbox is gone, and the command with it; or that could not be done.
            self.lost = isinstance(wrong, ConnectionError) or wrong.errno == errno.EBADF
            return self.lost

    def close(self) -> None:
        """Close everything; a command that runs on is killed."""
        runs = self.running()
        if self._command is not None:
            if runs:
                self.kill()
            self._agent.let_go(self._command)
            self._command = None
        self._let_go(runs=runs)
