"""What a command writes: captured with caps, demultiplexed from an engine's stream."""

from __future__ import annotations

from collections import deque
from typing import IO, TYPE_CHECKING

from pytest_sandbox.runtimes.base import HEAD, LOG_LIMIT, TAIL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARK = b"\n[... %d bytes dropped by pytest-sandbox ...]\n"
"""Stands where the middle of a stream was dropped."""


class LogFile:
    """The fuller log of one command, at most LOG_LIMIT bytes; opened when the first byte comes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._left = LOG_LIMIT

    def write(self, data: bytes) -> None:
        """Add `data` while there is room; a full disk on the host ends the log, not the run."""
        if self.path is None or self._left <= 0:
            return
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            self._file.write(data[: self._left])
        except OSError:
            self._left = 0
            return
        self._left -= len(data)

    def close(self) -> Path | None:
        """Finish the file; its path, or None where nothing was written."""
        if self._file is None:
            return None
        try:
            self._file.close()
        except OSError:
            return None
        return self.path


class Capture:
    """One stream: at most HEAD bytes from its begin and TAIL bytes from its end are kept in memory.

    `total` counts every byte that was seen.
    """

    __slots__ = ("_head", "_head_size", "_log", "_tail", "_tail_size", "total")

    def __init__(self, log: LogFile | None = None) -> None:
        self._head: list[bytes] = []
        self._head_size = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._log = log
        self.total = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(data)
        if self._log is not None:
            self._log.write(data)
        if self._head_size < HEAD:
            room = HEAD - self._head_size
            self._head.append(data[:room])
            self._head_size += len(self._head[-1])
            data = data[room:]
            if not data:
                return
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= TAIL:
            self._tail_size -= len(self._tail.popleft())

    def clear(self) -> None:
        """Forget everything: it was not the command that wrote it."""
        self._head.clear()
        self._tail.clear()
        self._head_size = self._tail_size = self.total = 0

    @property
    def truncated(self) -> bool:
        """Whether bytes in the middle were dropped."""
        return self.total > HEAD + TAIL

    def value(self) -> bytes:
        """What was kept; a line in the middle says how much was dropped."""
        if not self._tail:
            return b"".join(self._head) if len(self._head) != 1 else self._head[0]
        tail = b"".join(self._tail)[-TAIL:]
        dropped = self.total - HEAD - len(tail)
        return b"".join((*self._head, MARK % dropped if dropped else b"", tail))


class TailBuffer:
    """The last `size` bytes of something that never ends."""

    def __init__(self, size: int = TAIL) -> None:
        self._size = size
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Add `data`, forget what is too old."""
        self._data += data
        if len(self._data) > 2 * self._size:
            del self._data[: -self._size]

    def value(self) -> bytes:
        """What is kept."""
        return bytes(self._data[-self._size :])


class Demultiplexer:
    """Takes apart the frames of Docker's attach stream: 8 bytes of header, then the payload."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (stream, payload) for what is complete; 1 is stdout, 2 is stderr. Payloads may come
        in parts.
        """
        if not self._buffer and self._left >= len(data):
            self._left -= len(data)
            yield self._stream, data
            return
        buffer = self._buffer
        buffer += data
        position = 0
        while position < len(buffer):
            if self._left == 0:
                if len(buffer) - position < 8:
                    break
                self._stream = buffer[position]
                self._left = int.from_bytes(buffer[position + 4 : position + 8], "big")
                position += 8
                continue
            part = bytes(buffer[position : position + self._left])
            position += len(part)
            self._left -= len(part)
            yield self._stream, part
        del buffer[:position]
