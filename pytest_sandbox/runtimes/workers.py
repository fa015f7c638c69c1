"""Worker shells: one runs one command at a time, the host talks to it over FIFOs.

The thread that calls `run()` does all the reading itself: no thread and no engine stands between it
and the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes import shell
from pytest_sandbox.runtimes.control import ControlLost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.control import Control
    from pytest_sandbox.runtimes.shell import Facts, Report
    from pytest_sandbox.runtimes.streams import Capture

IDLE: Final = 4
CHUNK: Final = 1 << 16
BIG_PIPE: Final = 1 << 20
DRAIN: Final = 16 << 20
"""At most this much is read after a command's end; a child that writes for ever goes on to the log.
"""
F_SETPIPE_SZ: Final = 1031


class WorkerLost(Exception):
    """The worker shell ended, or does not answer."""


class Worker:
    """One worker shell and its two FIFOs."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.pid = 0
        self._paths = (folder / f"w{number}", folder / f"s{number}")
        for path in self._paths:
            _make_fifo(path)
        # Reading and writing: opening does not block, and our death closes the last writer.
        self._write = os.open(self._paths[0], os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self.status = os.open(self._paths[1], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._buffer = b""

    def send(self, program: bytes, timeout: float = 10.0) -> None:
        """Give the worker a program. Raises WorkerLost when it does not take it."""
        view = memoryview(program)
        deadline = time.monotonic() + timeout
        while view:
            try:
                view = view[os.write(self._write, view) :]
            except BlockingIOError:
                poller = select.poll()
                poller.register(self._write, select.POLLOUT)
                if time.monotonic() > deadline or not poller.poll(timeout * 1000):
                    raise WorkerLost from None

    def lines(self) -> list[bytes]:
        """What the worker said since the last call. Raises WorkerLost at its end."""
        try:
            data = os.read(self.status, 4096)
        except BlockingIOError:
            return []
        if not data:
            raise WorkerLost
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return lines

    def greet(self, timeout: float) -> None:
        """Wait for the worker's first words. Raises WorkerLost."""
        self.send(shell.greet_worker())
        poller = select.poll()
        poller.register(self.status, select.POLLIN)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not poller.poll(left * 1000):
                break
            for line in self.lines():
                word, _, pid = line.partition(b" ")
                if word == b"hello":
                    self.pid = int(pid)
                    return
        raise WorkerLost

    def close(self) -> None:
        """Let the worker read end of file: it ends after what it is doing."""
        for descriptor in (self._write, self.status):
            os.close(descriptor)
        for path in self._paths:
            path.unlink(missing_ok=True)


def _make_fifo(path: Path) -> None:
    os.mkfifo(path)
    path.chmod(
        stat.S_IRUSR | stat.S_IWUSR | 0o066
    )  # the sandbox's user may be anybody; the folder is private


class Pool:
    """The workers of one sandbox, started when they are needed."""

    def __init__(self, control: Control, facts: Facts, folder: Path, shell_path: str) -> None:
        self._control = control
        self._facts = facts
        self._folder = folder
        self._shell = shell_path
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: dict[int, Worker] = {}
        self._next = 0

    def take(self) -> Worker:
        """An idle worker, or a new one. Raises WorkerLost when none can be started, ControlLost."""
        with self._lock:
            if self._idle:
                worker = self._idle.pop()
                self._busy[worker.number] = worker
                return worker
            number = self._next
            self._next += 1
        worker = Worker(number, self._folder)
        try:
            self._control.call(shell.spawn_worker(self._facts, self._shell, number), 30.0)
            worker.greet(2.0)
        except BaseException:
            worker.close()
            raise
        with self._lock:
            self._busy[number] = worker
        return worker

    def give_back(self, worker: Worker, usable: bool) -> None:
        """Put a worker back; one that is broken or too many ends."""
        with self._lock:
            self._busy.pop(worker.number, None)
            if usable and len(self._idle) < IDLE:
                self._idle.append(worker)
                return
        worker.close()

    def pids(self) -> set[int]:
        """The processes of all workers."""
        with self._lock:
            return {worker.pid for worker in (*self._idle, *self._busy.values())}

    def busy(self) -> set[int]:
        """The processes of the workers that run a command."""
        with self._lock:
            return {worker.pid for worker in self._busy.values()}

    def close(self) -> None:
        """Close the idle workers; busy ones are closed by the threads that hold them."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()


class Pipes:
    """The FIFOs of one command, as the host holds them."""

    def __init__(self, folder: Path, token: str, merge: bool, stdin: bytes | None) -> None:
        self._folder = folder
        self._paths: list[Path] = []
        self._open: dict[int, Capture | None] = {}
        self._big: set[int] = set()
        self.streams = shell.Streams(
            out=f"{shell.FOLDER}/o{token}",
            err="" if merge else f"{shell.FOLDER}/e{token}",
            stdin="/dev/null" if stdin is None else f"{shell.FOLDER}/i{token}",
        )
        self.descriptors: list[int] = []
        try:
            for name in ("o",) if merge else ("o", "e"):
                path = folder / f"{name}{token}"
                _make_fifo(path)
                self._paths.append(path)
                self.descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            if stdin is not None:
                path = folder / f"i{token}"
                self._paths.append(path)
                path.write_bytes(stdin)
                path.chmod(0o644)
        except BaseException:
            self.close()
            raise

    def read(self, descriptor: int, capture: Capture) -> bool:
        """Read once; False at end of file."""
        try:
            data = os.read(descriptor, BIG_PIPE if descriptor in self._big else CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        capture.feed(data)
        if len(data) == CHUNK and descriptor not in self._big:
            self._big.add(descriptor)
            with contextlib.suppress(OSError):
                import fcntl

                fcntl.fcntl(descriptor, F_SETPIPE_SZ, BIG_PIPE)
        return True

    def drain(self, descriptor: int, capture: Capture) -> bool:
        """Read all that is there, without waiting; False at end of file (nobody holds the other
        end).
        """
        end = capture.total + DRAIN
        seen = -1
        while seen != capture.total < end:
            seen = capture.total
            if not self.read(descriptor, capture):
                return False
        return True

    def hand_over(self, descriptor: int) -> None:
        """Somebody else closes this one."""
        self.descriptors.remove(descriptor)

    def close(self) -> None:
        """Close what is left and remove the names."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        for path in self._paths:
            path.unlink(missing_ok=True)


def wait_for_report(
    worker: Worker,
    token: str,
    pipes: Pipes,
    captures: list[Capture],
    *,
    deadline: float | None,
    too_much: Callable[[], bool],
) -> Report | None:
    """Read the streams until the worker reports; None when the deadline or `too_much` comes first.

    Raises WorkerLost when the worker ends without a word.
    """
    poller = select.poll()
    poller.register(worker.status, select.POLLIN)
    targets = dict(zip(pipes.descriptors, captures, strict=True))
    for descriptor in targets:
        poller.register(descriptor, select.POLLIN)
    while True:
        wait: float | None = None
        if deadline is not None:
            wait = (deadline - time.monotonic()) * 1000
            if wait <= 0:
                return None
        reported: Report | None = None
        for descriptor, _ in poller.poll(wait):
            if descriptor == worker.status:
                for line in worker.lines():
                    reported = shell.parse_report(line, token) or reported
            elif not pipes.read(descriptor, targets[descriptor]):
                poller.unregister(descriptor)
        if reported is not None:
            return reported
        if too_much():
            return None


__all__ = [
    "ControlLost",
    "Pipes",
    "Pool",
    "Worker",
    "WorkerLost",
    "wait_for_report",
]
