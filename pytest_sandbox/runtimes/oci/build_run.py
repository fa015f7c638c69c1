"""One command of a build: run to its end in a sandbox whose upper folder stays."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.runtimes.build_blame import COLOUR, KEPT_LINES
from pytest_sandbox.runtimes.oci import leavings, watcher
from pytest_sandbox.runtimes.owner import current_owner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.supervisor import Channel
    from pytest_sandbox.runtimes.oci.order import Order
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

RUN: Final = "build"
"""What builds are called where sandboxes name the run that they belong to."""
_START: Final = "pytest_sandbox.runtimes.oci.launch:start"
_END: Final = 30.0
"""A killed sandbox is gone within this many seconds, or its supervisor is not well."""
_WIDEST: Final = 4096


class Lines:
    """The last lines that a command wrote, as people read them: no colours, no empty ones.

    Its two streams are put together line by line: what one writes in pieces stays whole.
    """

    def __init__(self) -> None:
        self.last: deque[str] = deque(maxlen=KEPT_LINES)
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {number: make("replace") for number in (1, 2)}
        self._rests = dict.fromkeys(self._decoders, "")

    def feed(self, data: bytes, stream: int = 1, *, end: bool = False) -> None:
        """Take the next bytes of stdout (1) or stderr (2)."""
        text = self._rests[stream] + self._decoders[stream].decode(data, end)
        *whole, rest = text.split("\n")
        if end or len(rest) > 16 * _WIDEST:
            whole.append(rest)
            rest = ""
        self._rests[stream] = rest
        for text in whole:
            # \r begins a line anew: what a progress display showed last is what counts
            for line in COLOUR.sub("", text).splitlines():
                if line.strip():
                    self.last.append(line.rstrip()[:_WIDEST])


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. `created` are the paths that were made in its root for mounts.

    `timed_out`: it was ended at the deadline; `out_of_memory`: the kernel, or the weaker watcher,
    ended a process of it.
    """

    status: int
    timed_out: bool
    out_of_memory: bool
    created: tuple[str, ...]


def run(runtime: OciRuntime, order: Order, lines: Lines, deadline: float) -> Ran:
    """Run the command of `order` until it ends, or until `deadline` (of time.monotonic).

    What is interrupted is ended first. Raises SandboxError where it cannot be started.
    """
    root = runtime.store.root
    leavings.note(root, order.id, current_owner(RUN))
    counters = -1
    if order.limits.weak:
        counters = os.memfd_create("pytest-sandbox-counters")
        os.pwrite(counters, bytes(watcher.COUNTERS.size), 0)
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    readers, writers = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        extra = [counters] if counters >= 0 else []
        try:
            channel = runtime.supervisor.open(
                _START, order.document(), [null, *writers, *extra]
            )
        finally:
            for descriptor in (null, *writers):
                os.close(descriptor)
        try:
            started = channel.result()
            ended = _Watch(channel, readers, lines).until(deadline)
        except BaseException:
            _end(channel)
            raise
        finally:
            channel.close()
        killed = bool(ended.usage.get("oom_kills"))
        if counters >= 0:
            killed = watcher.COUNTERS.unpack(os.pread(counters, watcher.COUNTERS.size, 0))[0] > 0
        return Ran(ended.status, ended.timed_out, killed, tuple(started["created"]))
    finally:
        for descriptor in readers:
            os.close(descriptor)
        if counters >= 0:
            os.close(counters)
        leavings.forget(root, order.id)


class _Watch:
    """Reads what a sandbox writes, and what the supervisor says of it, until nothing is left."""

    def __init__(self, channel: Channel, readers: list[int], lines: Lines) -> None:
        self.status = 137
        self.timed_out = False
        self.usage: Mapping[str, Any] = {}
        self._channel = channel
        self._streams = {reader: number for number, reader in enumerate(readers, 1)}
        self._lines = lines
        for reader in readers:
            os.set_blocking(reader, False)

    def until(self, deadline: float) -> _Watch:
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        for reader in self._streams:
            poller.register(reader, select.POLLIN)
        gone = False
        while not gone:
            left = deadline - time.monotonic()
            if self.timed_out and left < -_END:
                break
            if left <= 0 and not self.timed_out:
                self.timed_out = True
                self._channel.signal(signal.SIGKILL)
            for descriptor, _ in poller.poll(1000 if self.timed_out else left * 1000 + 1):
                if descriptor == self._channel.fileno():
                    gone = self._hear()
                elif not self._read(descriptor):
                    poller.unregister(descriptor)
        for reader, number in self._streams.items():
            while self._read(reader):  # what it wrote before its end
                pass
            self._lines.feed(b"", number, end=True)
        return self

    def _hear(self) -> bool:
        """Take one message; whether it was the last."""
        received = self._channel.receive()
        if received is None or "gone" in received[0]:
            return True
        message = received[0]
        if "exit" in message:
            code = int(message["exit"])
            self.status = code if code >= 0 else 128 - code
        elif "cleared" in message.get("said", {}):
            self.usage = message["said"]["cleared"]
        return False

    def _read(self, reader: int) -> bool:
        """Read once; False where there is nothing (more)."""
        try:
            data = os.read(reader, 1 << 16)
        except BlockingIOError:
            return False
        self._lines.feed(data, self._streams[reader], end=not data)
        return bool(data)


def _end(channel: Channel) -> None:
    """Kill what the channel belongs to, and wait until nothing but its folder is left."""
    channel.signal(signal.SIGKILL)
    deadline = time.monotonic() + _END
    with contextlib.suppress(OSError, SandboxError):
        while (left := deadline - time.monotonic()) > 0:
            received = channel.receive(left)
            if received is None or "gone" in received[0]:
                return
