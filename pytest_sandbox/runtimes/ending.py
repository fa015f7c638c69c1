"""How a sandbox ended, and the error that says so."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pytest_sandbox.errors import Blame, SandboxGone, SandboxTimeout
from pytest_sandbox.runtimes.deadlines import DEADLINES

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.live_system import Engine


class Ending:
    """The wall clock of one sandbox, and why it is over (`why`, empty while it is not)."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._closed = False
        self._pid = os.getpid()
        self._memory = False
        self.told = 0
        """So many kills for want of memory were told with the commands that they hit."""
        self.why = ""
        self._set(seconds)

    def _set(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = time.monotonic()
        self.deadline = self._began + seconds
        self._clock = DEADLINES.arm(seconds, self._strike)

    def _strike(self) -> None:
        self.end("time")

    def begin(self, seconds: float) -> None:
        """From now on it has so many seconds, however long it waited to be used."""
        self._clock.cancel()
        if not self._closed:
            self._set(seconds)

    @property
    def struck(self) -> bool:
        """Whether the wall clock ended it."""
        return self.why == "time" or time.monotonic() >= self.deadline

    @property
    def foreign(self) -> bool:
        """Whether this is a fork of the process that started it."""
        return os.getpid() != self._pid

    def end(self, why: str) -> None:
        """End the sandbox at once; the first reason counts."""
        if not self._closed:
            self.why = self.why or why
            self._engine.kill()

    def close(self) -> None:
        """It was closed, as is right."""
        self._closed = True
        self._clock.cancel()

    def check(self) -> None:
        """Raise SandboxGone when it is over, or another process's."""
        if self.foreign:
            msg = "the sandbox belongs to the process that started it, not to a fork of that"
            raise SandboxGone(msg, blame=Blame.HOST, next_step="start one in the child")
        if self._closed:
            msg = "the sandbox is closed"
            raise SandboxGone(msg, blame=Blame.HOST, next_step="use it before it is closed")
        if self.why or self.struck:
            raise self.gone(None)

    def timeout(self, job: Job, status: int = 137) -> SandboxTimeout:
        """The error for a command that was ended by a clock: its own, or the sandbox's."""
        if self.struck:
            msg = f"the sandbox ended after {self._seconds:g} s, its wall clock"
            step = "raise the sandbox's timeout"
        else:
            msg = f"the command ran longer than {job.timeout:g} s"
            step = "give it more time with timeout=, or find out what it waits for"
            if self.why:
                msg += ", and the sandbox had to end with it"
        return SandboxTimeout(f"{msg}: {job.shown()}", job.result(status, "time"), next_step=step)

    def gone(self, job: Job | None) -> SandboxGone | SandboxTimeout:
        """The error for a sandbox that is not there any more, or not for the command `job`."""
        if job is not None and job.began and (self.struck or job.ended == "time"):
            return self.timeout(job)
        if self.struck:
            msg = f"the sandbox ended after {self._seconds:g} s, its wall clock"
            return SandboxGone(
                msg, limit="time", blame=Blame.TIMEOUT, next_step="raise the sandbox's timeout"
            )
        if self._closed:
            return SandboxGone("the sandbox was closed while a command ran", blame=Blame.HOST)
        if self._ran_out_of_memory():
            self.why = self.why or "out of memory"
            msg = "the sandbox ran out of memory, and its own processes were killed"
            return SandboxGone(
                msg, limit="memory", blame=Blame.LIMIT, next_step="raise the sandbox's memory"
            )
        msg = self.why or "the sandbox's main process ended"
        what = f" while it ran {job.shown()}" if job is not None else ""
        details = job.captures[-1].value()[-2000:].decode("utf-8", "replace") if job else ""
        return SandboxGone(
            msg + what,
            details=details,
            next_step="look for what kills processes that are not its own",
        )

    def _ran_out_of_memory(self) -> bool:
        lived = time.monotonic() - self._began
        self._memory = self._memory or self._engine.was_out_of_memory(
            lived, patience=1.0, known=self.told
        )
        return self._memory
