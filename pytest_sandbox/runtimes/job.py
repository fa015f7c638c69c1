"""One call of `run`: what was asked for, and what was seen so far."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from pytest_sandbox.runtimes.base import Result
from pytest_sandbox.runtimes.streams import Capture, LogFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_sandbox.runtimes.base import LimitName


class Job:
    """A command between its start and its Result."""

    def __init__(
        self,
        *,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        cwd: str,
        user: str,
        input: bytes | None,
        merge: bool,
        log: Path | None,
        timeout: float | None,
    ) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.user = user
        self.input = input
        self.merge = merge
        self.timeout = timeout if timeout is not None else 0.0
        self.log = LogFile(log)
        self.captures = [Capture(self.log)] if merge else [Capture(self.log), Capture(self.log)]
        self.ended: LimitName | None = None
        self.began = 0.0
        self._limited = timeout is not None

    def start(self) -> None:
        """The command starts now."""
        self.began = time.monotonic()

    @property
    def deadline(self) -> float | None:
        return self.began + self.timeout if self._limited else None

    def most(self) -> int:
        """The bytes of its longest stream."""
        return max(capture.total for capture in self.captures)

    def stderr(self) -> bytes:
        return self.captures[-1].value()

    def shown(self) -> str:
        """The command for an error's text, shortened."""
        text = shlex.join(self.argv)
        return text if len(text) <= 200 else text[:197] + "..."

    def result(self, status: int, limit: LimitName | None) -> Result:
        return Result(
            argv=self.argv,
            returncode=status,
            stdout_bytes=self.captures[0].value(),
            stderr_bytes=b"" if self.merge else self.captures[1].value(),
            truncated=any(capture.truncated for capture in self.captures),
            limit=limit,
            duration=time.monotonic() - self.began,
            log=self.log.close(),
        )
