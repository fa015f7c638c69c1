"""Systems are closed behind the tests' backs, and all of them before the run is over."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_THREADS: Final = 2
BACKLOG: Final = 16
"""So many may wait to be closed; who brings one more waits, so that a run of many quick tests
stays as small as one of few.
"""
STAND_BACK: Final = 0.002
"""Seconds that a thread waits which has something to do again: the test that gave it goes on first,
since only one thread of a process runs Python.
"""


class Closer:
    """Calls that clear something away, made by threads in the order in which they came.

    What a call raises is dropped: the sweep at the end of a run removes what is left.
    """

    def __init__(self, threads: int = _THREADS, backlog: int = BACKLOG) -> None:
        self._most = threads
        self._backlog = backlog
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[Callable[[], object]] = deque()
        self._threads = 0
        self._idle = 0
        self._over = False
        self._pid = os.getpid()

    def submit(self, call: Callable[[], object]) -> None:
        """Have it made: here and now where no thread can, in a fork of the process that made this
        closer, and after `finish`.
        """
        if os.getpid() == self._pid:
            with self._changed:
                while len(self._waiting) >= self._backlog and not self._over:
                    self._changed.wait()
                if not self._over:
                    self._waiting.append(call)
                    if not self._idle and self._threads < self._most:
                        self._threads += 1
                        threading.Thread(
                            target=self._work, name="pytest-sandbox-close", daemon=True
                        ).start()
                    self._changed.notify_all()
                    return
        with contextlib.suppress(Exception):
            call()

    def finish(self, seconds: float) -> bool:
        """Wait until everything is done, for at most so many seconds; whether it is."""
        if os.getpid() != self._pid:
            return True
        deadline = time.monotonic() + seconds
        with self._changed:
            self._over = True
            self._changed.notify_all()
            while self._threads:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _work(self) -> None:
        while True:
            idle = False
            with self._changed:
                self._idle += 1
                while not self._waiting and not self._over:
                    idle = True
                    self._changed.wait()
                self._idle -= 1
                if not self._waiting:
                    self._threads -= 1
                    self._changed.notify_all()
                    return
                call = self._waiting.popleft()
                self._changed.notify_all()
            if idle and not self._over:
                time.sleep(STAND_BACK)
            with contextlib.suppress(Exception):
                call()
            del call  # while it waits, it holds no system that is gone
