"""Where time goes, when somebody asks: every moment belongs to a phase of an item, or of the run.

The clock is monotonic. What no phase claims is `other`, so that phases add up to the wall time.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER: Final = "other"
"""What no phase claims: pytest itself, other plugins, a test's own code."""

_NOTHING: Final = nullcontext()


class Clock:
    """A clock that is off: it measures nothing, and costs nothing."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Inside this context time belongs to the phase; to an inner one of it, inside that."""
        del name
        return _NOTHING


class Stopwatch(Clock):
    """A clock that runs. It follows the thread that made it: what others do meanwhile costs the
    run nothing, unless it is waited for.
    """

    def __init__(self, began: float | None = None) -> None:
        self.run: dict[str, float] = {}
        """Seconds of the run outside of items, by phase."""
        self._sums = self.run
        self._stack: list[str] = []
        self._at = time.monotonic() if began is None else began
        self._thread = threading.get_ident()

    def mark(self) -> float:
        """Give the time since the last mark to whose it is; now, on the monotonic clock."""
        now = time.monotonic()
        name = self._stack[-1] if self._stack else OTHER
        self._sums[name] = self._sums.get(name, 0.0) + now - self._at
        self._at = now
        return now

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        self.mark()
        self._stack.append(name)
        try:
            yield
        finally:
            self.mark()
            self._stack.pop()

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._measured(name) if threading.get_ident() == self._thread else _NOTHING

    def begin(self) -> None:
        """From here on time is an item's."""
        self.mark()
        self._sums = {}

    def finish(self) -> dict[str, float]:
        """The item is over: its seconds by phase. Empty where none had begun."""
        self.mark()
        found, self._sums = self._sums, self.run
        return {} if found is self.run else found


OFF: Final = Clock()


def process_began() -> float | None:
    """When this process was started, on the monotonic clock (to a hundredth of a second); None
    where the kernel does not tell. proc(5): field 22 of stat counts ticks since boot.
    """
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return time.monotonic() - max(0.0, age)
