"""The control shell: the sandbox's main process, spoken to over the engine's attach stream.

When this process dies, however it dies, the stream ends, the shell reads end of file and the
sandbox ends.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from typing import Protocol

from pytest_sandbox.runtimes.streams import Demultiplexer, TailBuffer


class ControlLost(Exception):
    """The control shell does not answer any more."""


class Channel(Protocol):
    """What an engine gives for an attach stream: a socket, or something like one."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def wait(self, seconds: float | None) -> bool: ...
    def close(self) -> None: ...


class Control:
    """Calls to the control shell, one at a time: a program goes in, its lines come out."""

    def __init__(self, channel: Channel, said: TailBuffer) -> None:
        """`said` takes what the sandbox's init and main process write to stderr."""
        self._channel = channel
        self.said = said
        self._frames = Demultiplexer()
        self._lock = threading.RLock()
        self._out = b""
        self.lost = False
        self._started = False

    def call(self, program: bytes, timeout: float = 10.0) -> list[bytes]:
        """Run `program` (builtins alone) and return what it printed. Raises ControlLost."""
        token = secrets.token_hex(8).encode()
        begin, end = b"<%s\n" % token, b">%s\n" % token
        # Both ends are marked: what an interrupted call left is no part of the next answer.
        text = b"echo '<%s'\n%s\necho '>%s'\n" % (token, program, token)
        with self._lock:
            if self.lost:
                raise ControlLost
            if not self._started:
                self._started = True
                text = b"exec 2>/dev/null\n" + text
            deadline = time.monotonic() + timeout
            try:
                self._channel.sendall(text)
                while (stop := self._out.find(end)) < 0:
                    self._receive(deadline)
            except (OSError, ValueError) as exc:
                self.lost = True
                with contextlib.suppress(ControlLost, OSError, ValueError):
                    while True:  # its last words
                        self._receive(min(deadline, time.monotonic() + 0.5))
                raise ControlLost from exc
            start = self._out.find(begin)
            answer = self._out[start + len(begin) : stop] if start >= 0 else b""
            self._out = self._out[stop + len(end) :]
            return answer.split(b"\n")[:-1]

    def silent(self) -> bool:
        """Whether nothing was said, and nothing ended, since the last call: an idle shell is."""
        return not self.lost and not self._channel.wait(0.0)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not self._channel.wait(left):
            self.lost = True
            raise ControlLost
        data = self._channel.recv(1 << 16)
        if not data:
            self.lost = True
            raise ControlLost
        for stream, payload in self._frames.feed(data):
            if stream == 1:
                self._out += payload
            else:
                self.said.feed(payload)

    def close(self) -> None:
        """End the stream; the control shell then ends, and the sandbox with it."""
        self.lost = True
        self._channel.close()
