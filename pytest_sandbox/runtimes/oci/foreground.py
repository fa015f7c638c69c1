"""One process of a sandbox in the foreground: its streams are ours, our signals are its.

Its descriptors are always pipes (or a terminal) of its own, never ours: an engine gives what it
gets to the sandbox's user, and a sandbox with our terminal could type on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Protocol

    from pytest_sandbox.oci.supervisor import Channel

    class Streams(Protocol):
        """How a process is connected with ours. `theirs` are its stdin, stdout and stderr."""

        wants_console: bool
        theirs: list[int]

        def begin(self, console: int, signals: Signals) -> None:
            """Copy, from now on; `console` is the other side of its terminal."""

        def finish(self, seconds: float | None) -> None:
            """Wait until everything that the process wrote is out, at most so many seconds."""

        def given(self) -> None:
            """The process has its ends: close our copies."""

        def close(self) -> None:
            """Give back what is still held, and the terminal as it was."""


FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
_KEYBOARD: Final = frozenset({signal.SIGINT, signal.SIGQUIT})
"""A terminal sends these to a whole process group, and shells count on that."""
_CHUNK: Final = 1 << 16
_SPLICED: Final = 1 << 20
_LOOK: Final = 0.02
_DRAIN: Final = 10.0
_UNREAD: Final = 0.5
"""After a kill of ours the last output may take `_DRAIN` seconds to be read, as long as somebody
reads; where nobody does, it is over after `_UNREAD`.
"""
_LONGEST: Final = 86400.0
"""No single wait is longer, in seconds: the kernel counts in smaller units."""
_CLEAR: Final = 60.0
"""So long, in seconds, a supervisor may take to clear away."""


class Stopped(BaseException):
    """A signal came before there was a process to send it to; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """While this context is open, signals go to the process, once there is one."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._group: Callable[[int], None] | None = None
        self._waiting: list[int] = []
        self._before: dict[int, Any] = {}
        self._told: tuple[int, int] = (-1, -1)
        self._other = -1
        self.resized: Callable[[], None] | None = None
        """Called at SIGWINCH in place of forwarding it."""

    @property
    def told(self) -> int:
        """A descriptor that can be read when a signal has come. One that comes just before a call
        that waits does not end that: wait for this, too.
        """
        return self._told[0]

    def heed(self) -> None:
        """What was told is known: its handlers have run."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.told, 512)

    def __enter__(self) -> Signals:
        self._told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._other = signal.set_wakeup_fd(self._told[1], warn_on_full_buffer=False)
        for number in FORWARDED:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = before
            signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.set_wakeup_fd(self._other)
        for descriptor in self._told:
            os.close(descriptor)
        self._told = (-1, -1)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGWINCH and self.resized is not None:
            self.resized()
        elif self._channel is None:
            self._keep(number)
        elif self._group is not None and number in _KEYBOARD:
            self._group(number)
        else:
            self._channel.signal(number)

    def _keep(self, number: int) -> None:
        if number in {signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}:
            self._waiting.append(number)
        else:
            raise Stopped(number)

    def send_to(self, channel: Channel, group: Callable[[int], None] | None = None) -> None:
        """From now on they go there; those that waited first. `group` takes those of a keyboard."""
        self._channel, self._group = channel, group
        while self._waiting:
            channel.signal(self._waiting.pop(0))


class Pipes:
    """Stdin, stdout and stderr through pipes, each copied by a thread of its own."""

    wants_console = False

    def __init__(self, *, interactive: bool, whole: bool = True, together: bool = True) -> None:
        """`interactive`: our stdin goes to the process; else it finds the end of file. `together`:
        its stdout and stderr are one where ours are.

        `whole`: the output ends with the process; else children of it may hold it open, and what is
        there at its end is all.
        """
        self._whole = whole
        self._ours: dict[int, int] = {}
        self._input = -1
        self._pumps: list[_Pump] = []
        self.theirs: list[int] = []
        if interactive:
            reader, self._input = os.pipe2(os.O_CLOEXEC)
            self.theirs.append(reader)
        else:
            self.theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for number in (1, 2):
            if number == 2 and together and _same(1, 2):  # `2>&1`: one pipe keeps the order
                self.theirs.append(os.dup(self.theirs[-1]))
                break
            self._ours[number], writer = os.pipe2(os.O_CLOEXEC)
            self.theirs.append(writer)

    def begin(self, console: int, signals: Signals) -> None:  # noqa: ARG002 - a terminal's
        if self._input >= 0:
            _Pump(0, self._input).start()
            self._input = -1
        while self._ours:
            number, source = self._ours.popitem()
            pump = _Pump(source, number)
            self._pumps.append(pump)
            pump.start()

    def finish(self, seconds: float | None) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        for pump in self._pumps:
            before, moved = pump.position(), time.monotonic()
            while pump.is_alive() and (self._whole or not pump.idle()):
                pump.join(_LOOK)
                now, position = time.monotonic(), pump.position()
                if position != before:
                    before, moved = position, now
                if until is not None and (now > until or now > moved + _UNREAD):
                    return

    def detach(self) -> list[int]:
        """Our ends of its output, then of its input: somebody else copies."""
        found = [*self._ours.values(), *([self._input] if self._input >= 0 else [])]
        self._ours, self._input = {}, -1
        return found

    def close(self) -> None:
        self.given()
        for descriptor in (*self._ours.values(), *([self._input] if self._input >= 0 else [])):
            os.close(descriptor)
        self._ours, self._input = {}, -1

    def given(self) -> None:
        while self.theirs:
            os.close(self.theirs.pop())


def _same(one: int, other: int) -> bool:
    """Whether two of our descriptors are one open file, or one pipe or terminal."""
    try:
        first, second = os.fstat(one), os.fstat(other)
        if (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino):
            return False
        if not stat.S_ISREG(first.st_mode):
            return True
        information = [Path(f"/proc/self/fdinfo/{number}").read_bytes() for number in (one, other)]
    except OSError:
        return False
    return information[0] == information[1]


class _Pump(threading.Thread):
    """Copies until the source ends, or nobody reads the target any more; then it closes what is not
    one of our own three, so that the writer, or the reader, learns of it.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._target = target
        # Between pipes alone. While it waits, splice(2) holds on to the position of a file, which
        # others move on, and for other sources to the lock of the pipe, without which its other
        # end cannot even be closed: a process that has it would never end.
        self._spliced = all(stat.S_ISFIFO(os.fstat(end).st_mode) for end in (source, target))
        self._holds = False

    def idle(self) -> bool:
        """Whether everything that was written into the source is out."""
        return not any(_waiting(self._source)) and not self._holds

    def position(self) -> tuple[bytes, bytes]:
        """What waits to be copied, and (of a pipe) to be read: it changes while somebody reads."""
        return _waiting(self._source), _waiting(self._target)

    def run(self) -> None:
        try:
            while self._copy():
                pass
        finally:
            for descriptor in (self._source, self._target):
                if descriptor > 2:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)

    def _copy(self) -> bool:
        """One piece; False when it is over."""
        try:
            if self._spliced:
                return os.splice(self._source, self._target, _SPLICED) > 0
            poller = select.poll()
            poller.register(self._source, select.POLLIN)
            poller.poll()
            self._holds = True
            data = os.read(self._source, _CHUNK)
            write_all(self._target, data)
            self._holds = False
        except OSError as wrong:
            if wrong.errno == errno.EAGAIN:
                _await_both(self._source, self._target)
            elif self._spliced and wrong.errno in {errno.EINVAL, errno.ENOSYS}:
                self._spliced = False
            else:
                return False
            return True
        return bool(data)


def _waiting(descriptor: int) -> bytes:
    """The number of bytes in a pipe; nothing where that is not known."""
    try:
        return fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except OSError:
        return b""


def write_all(target: int, data: bytes) -> None:
    """Write everything, to a descriptor that does not block, too. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(target, select.POLLOUT)
            poller.poll()


def _await_both(source: int, target: int) -> None:
    """Somebody made one of them not block: wait until there is something, and room for it."""
    for descriptor, event in ((source, select.POLLIN), (target, select.POLLOUT)):
        poller = select.poll()
        poller.register(descriptor, event)
        poller.poll()


def attend(
    channel: Channel,
    streams: Streams,
    signals: Signals,
    *,
    group: Callable[[int], None] | None = None,
    timeout: float | None = None,
    expired: Callable[[], None] = lambda: None,
) -> tuple[int, bool]:
    """Stay with a process whose start was told, until it has ended and everything is cleared away.

    Gives its status (os.waitstatus_to_exitcode) and whether `timeout` seconds were over: it is
    killed then, after a call of `expired`. `group` sends a signal to its process group.

    Raises RuntimeUnavailable where its supervisor is gone.
    """
    until = None if timeout is None else time.monotonic() + timeout
    console = _console(channel) if streams.wants_console else -1
    signals.send_to(channel, group)  # before anybody can see that it runs
    streams.begin(console, signals)
    status: int | None = None
    late = False
    while True:
        left = None if until is None or late else max(until - time.monotonic(), 0.000_001)
        if left is not None:
            left = min(left, _LONGEST)
        there = channel.wait(_CLEAR if status is not None else left, signals.told)
        if there is None:
            if status is not None:
                break
            if until is not None and time.monotonic() < until:
                continue
            late = True
            expired()
            channel.signal(signal.SIGKILL)
            continue
        if not there:
            signals.heed()
            continue
        try:
            received = channel.receive()
        except SandboxError:
            break  # it could not clear everything away: the next run does
        if received is None:
            break
        message = received[0]
        if "exit" in message:
            status = int(message["exit"])
        elif "gone" in message:
            break
    if status is None:
        msg = "the supervisor of the sandbox is gone, and the sandbox with it"
        raise RuntimeUnavailable(msg, next_step="look whether it was killed")
    streams.finish(_DRAIN if late else None)
    return status, late


def _console(channel: Channel) -> int:
    """The terminal that the job said on its way."""
    while (received := channel.receive(_CLEAR)) is not None:
        message, descriptors = received
        if "console" in message.get("said", {}):
            return descriptors[0]
    msg = "the engine gave no terminal for the sandbox"
    raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor")
