"""From another process to the supervisor of a sandbox, and to its end."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING, Any, Final, Self

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.supervisor import Supervisor
from pytest_sandbox.runtimes.oci.containers.folder import (
    END,
    Container,
    NotRunning,
    connect,
    read_end,
)
from pytest_sandbox.runtimes.oci.containers.record import Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_JOBS: Final = "pytest_sandbox.runtimes.oci.containers.jobs"
_LOST: Final = 137
_EVERY: Final = 0.005


def reach(container: Container) -> Supervisor:
    """The supervisor of a running sandbox. Raises NotRunning."""
    if container.status != "running":
        raise NotRunning(container)
    try:
        return Supervisor.connected(connect(container.folder))
    except OSError:
        raise NotRunning(_latest(container)) from None


def ask(container: Container, job: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job of jobs.py for it. Raises NotRunning."""
    supervisor = reach(container)
    try:
        words = {"pid": container.record.pid, **args}
        return supervisor.call(f"{_JOBS}:{job}", words, where="host")
    finally:
        supervisor.close()


def to_group(supervisor: Supervisor, pid: int) -> Callable[[int], None]:
    """What sends a signal to the process group of a process that the supervisor watches."""

    def send(number: int) -> None:
        words = {"pid": pid, "signal": number, "group": True}
        with contextlib.suppress(SandboxError):  # it is gone, and that is told elsewhere
            supervisor.open(f"{_JOBS}:send", words).close()

    return send


class Waiter:
    """Waits for the end of one sandbox; made before what may end it. A context."""

    def __init__(self, container: Container) -> None:
        self._end = self._supervisor = self._first = -1
        with contextlib.suppress(FileNotFoundError):
            self._end = os.open(container.folder / END, os.O_RDONLY | os.O_CLOEXEC)
        if container.alive():
            with contextlib.suppress(ProcessLookupError):
                self._supervisor = os.pidfd_open(container.record.owner.pid)
                if container.record.pid:
                    self._first = os.pidfd_open(container.record.pid)

    def wait(self, seconds: float | None = None) -> Ending:
        """The end; `lost` for a sandbox whose supervisor was killed. Raises TimeoutError.

        First the sandbox's process ends, then its supervisor tells it within milliseconds.
        """
        until = None if seconds is None else time.monotonic() + seconds
        if self._first >= 0:
            _ready([self._first, self._supervisor], seconds)
        while True:
            alive = self._supervisor >= 0 and not _ready([self._supervisor], 0)
            found = read_end(self._end) if self._end >= 0 else None
            if found is not None:
                return found
            if not alive:
                return Ending(_LOST, time.time(), "lost")
            left = _EVERY if until is None else min(_EVERY, until - time.monotonic())
            if left <= 0:
                raise TimeoutError
            _ready([self._supervisor], left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._end, self._supervisor, self._first):
            if descriptor >= 0:
                os.close(descriptor)
        self._end = self._supervisor = self._first = -1


def _ready(descriptors: list[int], seconds: float | None) -> bool:
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(None if seconds is None else max(seconds, 0) * 1000))


def _latest(container: Container) -> Container:
    """With its end, if it was just being written."""
    for _ in range(40):
        container.end = read_end(container.folder)
        if container.end is not None or not container.folder.exists():
            break
        time.sleep(_EVERY)
    return container
