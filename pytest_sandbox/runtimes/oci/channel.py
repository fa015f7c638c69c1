"""The control shell's streams, as pipes of our own."""

from __future__ import annotations

import os
import select
import struct


class PipeChannel:
    """Two pipes and a third one, framed as an engine's attach stream is (see Demultiplexer)."""

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        """Our ends of the main process's streams; they are closed with the channel."""
        self._stdin = stdin
        self._outputs = {stdout: 1, stderr: 2}
        self._closed = False

    def sendall(self, data: bytes, /) -> None:
        """Write everything. Raises OSError when nobody reads any more."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._stdin, view) :]

    def wait(self, seconds: float | None) -> bool:
        """Whether `recv` has something (or the end) within so many seconds."""
        poller = select.poll()
        for descriptor in self._outputs:
            poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(None if seconds is None else max(seconds, 0) * 1000))

    def recv(self, size: int, /) -> bytes:
        """One frame, empty at the end of both streams."""
        while self._outputs:
            poller = select.poll()
            for descriptor in self._outputs:
                poller.register(descriptor, select.POLLIN)
            for descriptor, _ in poller.poll():
                data = os.read(descriptor, size)
                if data:
                    return struct.pack(">BxxxI", self._outputs[descriptor], len(data)) + data
                if self._outputs.pop(descriptor) == 1:
                    os.close(descriptor)
                    return b""  # the main process is gone
                os.close(descriptor)
        return b""

    def close(self) -> None:
        """Let the main process read end of file; may be called again."""
        if not self._closed:
            self._closed = True
            for descriptor in (self._stdin, *self._outputs):
                os.close(descriptor)
            self._outputs = {}
