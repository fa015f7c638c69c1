"""What background children write after their command ended: read on, so that they neither block nor
die of SIGPIPE.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.streams import TailBuffer


class Leftovers:
    """One thread for all sandboxes of this process; it starts with the first background child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sinks: dict[int, TailBuffer] = {}
        self._poller: select.epoll | None = None
        self._pid = 0

    def add(self, descriptor: int, sink: TailBuffer) -> None:
        """Read `descriptor` (non-blocking) into `sink` to its end, then close it."""
        with self._lock:
            if self._poller is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._sinks = {}
                self._poller = select.epoll()
                threading.Thread(
                    target=self._loop, args=(self._poller,), name="pytest-sandbox-logs", daemon=True
                ).start()
            self._sinks[descriptor] = sink
            self._poller.register(descriptor, select.EPOLLIN)

    def _loop(self, poller: select.epoll) -> None:
        while True:
            for descriptor, _ in poller.poll():
                try:
                    data = os.read(descriptor, 1 << 16)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                with self._lock:
                    sink = self._sinks.get(descriptor)
                    if data and sink is not None:
                        sink.feed(data)
                        continue
                    self._sinks.pop(descriptor, None)
                    with contextlib.suppress(OSError, ValueError):
                        poller.unregister(descriptor)
                    os.close(descriptor)


LEFTOVERS = Leftovers()
