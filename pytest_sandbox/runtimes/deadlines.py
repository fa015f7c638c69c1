"""One thread that waits for many moments: the wall clocks of all sandboxes of this process."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Alarm:
    """A call that is to be made at a moment; `cancel` forgets it."""

    __slots__ = ("_owner", "call")

    def __init__(self, call: Callable[[], None], owner: Deadlines) -> None:
        self.call: Callable[[], None] | None = call
        self._owner = owner

    def cancel(self) -> None:
        """It is not made any more; one that was made already is no error."""
        self._owner.cancel(self)


class Deadlines:
    """A thread per sandbox would cost every start; this one sleeps until the next moment."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """In a child: the thread stayed behind, and so did the sandboxes."""
        self._reset()

    def arm(self, seconds: float, call: Callable[[], None]) -> Alarm:
        """Make a call in so many seconds, in a thread of its own."""
        alarm = Alarm(call, self)
        entry = (time.monotonic() + seconds, next(self._numbers), alarm)
        with self._changed:
            heapq.heappush(self._heap, entry)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._wait, name="pytest-sandbox-clock", daemon=True
                )
                self._thread.start()
            elif self._heap[0] is entry:
                self._changed.notify()
        return alarm

    def cancel(self, alarm: Alarm) -> None:
        """See Alarm."""
        with self._changed:
            if alarm.call is None:
                return
            alarm.call = None  # what it would end is held by nothing else
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].call is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def _wait(self) -> None:
        while True:
            with self._changed:
                call = self._due()
            if call is not None:
                # Ending a sandbox may take a while, and others end meanwhile.
                threading.Thread(target=call, name="pytest-sandbox-end", daemon=True).start()

    def _due(self) -> Callable[[], None] | None:
        """The next call, when its moment has come; None to look again."""
        if not self._heap:
            self._changed.wait()
            return None
        when, _, alarm = self._heap[0]
        left = when - time.monotonic()
        if alarm.call is not None and left > 0:
            self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return None
        heapq.heappop(self._heap)
        call, alarm.call = alarm.call, None
        if call is None:
            self._cancelled = max(self._cancelled - 1, 0)
        return call


DEADLINES: Final = Deadlines()
os.register_at_fork(after_in_child=DEADLINES.after_fork)
