"""A sandbox's process on our terminal, which is raw meanwhile and afterwards as it was before."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import termios
import threading
import time
import tty
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import UsageError
from pytest_sandbox.runtimes.oci.foreground import write_all

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.foreground import Signals

_CHUNK: Final = 1 << 16
_NO_SIZE: Final = (0, 0)


class Terminal:
    """Our stdin and stdout, connected with a terminal of the sandbox's own."""

    wants_console = True

    def __init__(self, *, interactive: bool) -> None:
        """`interactive`: what is typed goes there. Raises UsageError where there is no terminal."""
        found = next((n for n in ((0,) if interactive else (0, 1, 2)) if os.isatty(n)), None)
        if found is None:
            which = "standard input is not one" if interactive else "no stream of ours is one"
            msg = f"-t needs a terminal (a tty), and {which}"
            raise UsageError(msg, next_step="leave -t out, or run it on a terminal")
        self._ours = found
        self._interactive = interactive
        self._console = -1
        self._raw: _Raw | None = None
        self._output: threading.Thread | None = None
        # The engine makes the terminal; these are for nobody.
        self.theirs = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of our terminal."""
        for number in (self._ours, 1, 0, 2):
            with contextlib.suppress(OSError):
                rows, columns = struct.unpack(
                    "HHHH", fcntl.ioctl(number, termios.TIOCGWINSZ, bytes(8))
                )[:2]
                return rows, columns
        return _NO_SIZE

    def begin(self, console: int, signals: Signals) -> None:
        self._console = console
        if self._interactive:
            self._raw = _Raw(self._ours)
        signals.resized = self._resize
        self._resize()
        if self._interactive:
            threading.Thread(target=self._type, daemon=True).start()
        self._output = threading.Thread(target=self._show, daemon=True)
        self._output.start()

    def _resize(self) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._ours, termios.TIOCGWINSZ, bytes(8))
            if any(struct.unpack("HHHH", size)[:2]):
                fcntl.ioctl(self._console, termios.TIOCSWINSZ, size)

    def _type(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(0, _CHUNK):
                write_all(self._console, data)

    def _show(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(self._console, _CHUNK):
                write_all(1, data)

    def finish(self, seconds: float | None) -> None:
        if self._output is not None:
            self._output.join(seconds)

    def given(self) -> None:
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        self.given()
        if self._raw is not None:
            self._raw.restore()
            self._raw = None


class _Raw:
    """Raw mode. A small process of ours gives the terminal its mode back if we are killed."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._before = termios.tcgetattr(terminal)
        reader, self._alive = os.pipe2(os.O_CLOEXEC)
        self._guard = os.fork()
        if self._guard == 0:
            try:
                _guard(terminal, reader, self._before)
            finally:
                os._exit(0)
        os.close(reader)
        tty.setraw(terminal, termios.TCSANOW)

    def restore(self) -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
        with contextlib.suppress(OSError):
            os.write(self._alive, b".")
        os.close(self._alive)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._guard, 0)


def _guard(terminal: int, reader: int, before: list[Any]) -> None:
    """Wait for the end of the process that has the other end of the pipe."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()  # no signal of the terminal comes here, and it may be set from here
    mine = os.open(os.devnull, os.O_RDWR)
    terminal, reader = os.dup(terminal), os.dup(reader)
    for standard in range(3):
        os.dup2(mine, standard)
    for other in (int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
        if other not in {0, 1, 2, terminal, reader}:
            with contextlib.suppress(OSError):
                os.close(other)
    if not os.read(reader, 1):
        time.sleep(0.02)  # what the sandbox still writes comes first
        termios.tcsetattr(terminal, termios.TCSANOW, before)
