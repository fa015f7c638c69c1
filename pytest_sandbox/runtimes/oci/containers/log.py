"""The log of a detached sandbox: what it wrote, stream by stream, within bounds.

A job of the supervisor (`keep`) reads the sandbox's pipes into `log`, frame after frame: stream
(1 or 2; 0 for a note of the keeper), time in nanoseconds, length, content. A file that is full
becomes `log.1`, in the place of the one before, so that at most twice `LARGEST` bytes are kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_sandbox.oci.supervisor import Call

LOG: Final = "log"
OLDER: Final = "log.1"
LOCK: Final = "log.lock"
LARGEST: Final = 32 << 20
_FRAME: Final = struct.Struct("=BQI")
_CHUNK: Final = 1 << 16
_EVERY: Final = 0.02


class Entry(NamedTuple):
    """One piece of output: `stream` 1 or 2, `time` in seconds; or 0 and the number of bytes of
    output that are no longer there."""

    stream: int
    time: float
    data: bytes


def prepare(folder: Path) -> None:
    """Make the files of an empty log."""
    for name in (LOCK, LOG):
        (folder / name).touch(mode=0o600)


def keep(call: Call) -> dict[str, Any]:
    """Read fds[0] (stdout) and fds[1] (stderr; none with a terminal) into the log of the folder
    `folder` until both end. Further descriptors are just held open. Says `ready` first.
    """
    folder: str = call.args["folder"]
    streams = {call.fds[0]: 1}
    if call.args["streams"] == 2:
        streams[call.fds[1]] = 2
    lock = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    call.send({"ready": True})
    writer = _Writer(folder, int(call.args.get("largest", LARGEST)))
    poller = select.poll()
    for descriptor in streams:
        poller.register(descriptor, select.POLLIN)
    while streams:
        for descriptor, _ in poller.poll():
            data = b""
            try:
                data = os.read(descriptor, _CHUNK)
            except OSError as wrong:
                if wrong.errno != errno.EIO:  # the end of a terminal
                    raise
            if data:
                writer.write(streams[descriptor], data)
            else:
                poller.unregister(descriptor)
                os.close(descriptor)
                del streams[descriptor]
    return {}


class _Writer:
    """The keeper's side of the files. A full disk loses output, not the sandbox."""

    def __init__(self, folder: str, largest: int) -> None:
        self._folder = folder
        self._largest = largest
        self._size = 0
        self._dropped = 0
        self._content = [0, 0]
        """Bytes of output in the older file and in this one."""
        self._file = self._open(os.O_APPEND)

    def _open(self, flags: int) -> int:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        return os.open(f"{self._folder}/{LOG}", flags, 0o600)

    def write(self, stream: int, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._size and self._size + len(data) > self._largest:
                self._rotate()
            self._append(stream, data)
            self._content[1] += len(data)

    def _append(self, stream: int, data: bytes) -> None:
        os.writev(self._file, [_FRAME.pack(stream, time.time_ns(), len(data)), data])
        self._size += _FRAME.size + len(data)

    def _rotate(self) -> None:
        self._dropped += self._content[0]
        os.rename(f"{self._folder}/{LOG}", f"{self._folder}/{OLDER}")  # noqa: PTH104
        os.close(self._file)
        self._file = self._open(os.O_EXCL)
        self._size, self._content = 0, [self._content[1], 0]
        if self._dropped:
            self._append(0, str(self._dropped).encode())


def read(
    folder: Path, *, follow: bool = False, over: Callable[[], bool] = lambda: True
) -> Iterator[Entry]:
    """Everything in the log, in its order. `follow` waits for more until `over` says that there
    will be none.
    """
    older, current = _both(folder)
    if current is not None:
        yield from (e for e in _first(current) if e.stream == 0)
    if older is not None:
        yield from (e for e in older.entries() if e.stream)
        older.close()
    while current is not None:
        done = not follow or over()  # asked before the last look, so that nothing is missed
        yield from (e for e in current.entries() if e.stream)
        older, latest = _both(folder) if follow else (None, None)
        if latest is None or latest.identity == current.identity:
            for file in filter(None, (older, latest)):
                file.close()
            if done:
                current.close()
                return
            time.sleep(_EVERY)
            continue
        yield from (e for e in current.entries() if e.stream)
        if older is not None:
            if older.identity != current.identity:  # two files were filled since the last look
                yield from older.entries()
            older.close()
        current.close()
        current = latest


class _Reader:
    """One file, as far as it was read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.identity = os.fstat(descriptor).st_ino
        self._rest = b""

    def entries(self) -> Iterator[Entry]:
        """The whole frames that are new."""
        while data := os.read(self.descriptor, 1 << 20):
            found, self._rest = _split(self._rest + data)
            yield from found

    def close(self) -> None:
        os.close(self.descriptor)


def _first(file: _Reader) -> list[Entry]:
    return _split(os.pread(file.descriptor, 256, 0))[0][:1]


def _both(folder: Path) -> tuple[_Reader | None, _Reader | None]:
    """The older file and the one that is written, of one moment."""
    while True:
        older = _open(folder / OLDER)
        current = _open(folder / LOG)
        again = _open(folder / OLDER)
        same = (older and older.identity) == (again and again.identity)
        if again is not None:
            again.close()
        if same:
            return older, current
        for file in filter(None, (older, current)):
            file.close()


def _open(path: Path) -> _Reader | None:
    try:
        return _Reader(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return None


def _split(data: bytes) -> tuple[list[Entry], bytes]:
    """Whole frames, and the bytes behind them."""
    found = []
    at = 0
    while len(data) - at >= _FRAME.size:
        stream, moment, length = _FRAME.unpack_from(data, at)
        if len(data) - at - _FRAME.size < length:
            break
        at += _FRAME.size
        found.append(Entry(stream, moment / 1e9, data[at : at + length]))
        at += length
    return found, data[at:]
