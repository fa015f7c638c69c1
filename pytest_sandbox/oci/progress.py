"""Progress of parallel transfers: bars on a terminal, a few plain lines elsewhere, or nothing."""

from __future__ import annotations

import threading
import time
from typing import IO, TYPE_CHECKING, Final, Protocol, Self

from pytest_sandbox.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
EVERY: Final = 3.0
"""Seconds between two plain lines on what still runs."""


class Bar(Protocol):
    """The progress of one transfer."""

    def advance(self, count: int) -> None:
        """So many bytes more."""

    def restart(self) -> None:
        """It begins anew."""

    def finish(self, note: str = "") -> None:
        """It is done; `note` may say how (already here, mounted)."""


class Display(Protocol):
    """One display for all transfers of an operation. A context: leaving it takes it down."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """A line of its own, above the bars."""

    def bar(self, name: str, total: int | None) -> Bar:
        """A bar for a transfer of `total` bytes (None: not known)."""


def display(stream: IO[str], *, quiet: bool = False) -> Display:
    """The display that fits a stream: bars on a terminal, lines elsewhere, nothing if `quiet`."""
    if quiet:
        return Silent()
    return Bars(stream) if stream.isatty() else Lines(stream)


def amount(count: int) -> str:
    """A number of bytes for people, such as `61.2 MiB`."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


class Silent:
    """Shows nothing; it is its own bar."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Nothing."""

    def bar(self, name: str, total: int | None) -> Bar:  # noqa: ARG002
        """A bar that nobody sees."""
        return self

    def advance(self, count: int) -> None:
        """Nothing."""

    def restart(self) -> None:
        """Nothing."""

    def finish(self, note: str = "") -> None:
        """Nothing."""


class Told(Silent):
    """No bars; what is said goes to `tell`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def say(self, text: str) -> None:
        """Tell it."""
        self._tell(text)


class Lines:
    """Plain lines: at most one in `every` seconds on all that runs, and one at each end."""

    def __init__(self, stream: IO[str], *, every: float = EVERY) -> None:
        self._stream = stream
        self._every = every
        self._lock = threading.Lock()
        self._next = time.monotonic() + every
        self._running: list[_Line] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """A line."""
        with self._lock:
            self._write(text)

    def bar(self, name: str, total: int | None) -> Bar:
        """A transfer that the lines tell of."""
        found = _Line(self, name, total)
        with self._lock:
            self._running.append(found)
        return found

    def tick(self) -> None:
        """Write the line on all that runs, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        with self._lock:
            if now >= self._next:
                self._next = now + self._every
                self._write(", ".join(map(str, self._running)))

    def end(self, line: _Line, note: str) -> None:
        """Write the line of an end."""
        with self._lock:
            if line in self._running:
                self._running.remove(line)
                self._write(f"{line.name}: {note or 'done, ' + amount(line.count)}")

    def _write(self, text: str) -> None:
        self._stream.write(printable(text) + "\n")
        self._stream.flush()


class _Line:
    def __init__(self, lines: Lines, name: str, total: int | None) -> None:
        self._lines = lines
        self.name = name
        self._total = total
        self.count = 0

    def __str__(self) -> str:
        of = "" if self._total is None else f" of {amount(self._total)}"
        return f"{self.name}: {amount(self.count)}{of}"

    def advance(self, count: int) -> None:
        self.count += count
        self._lines.tick()

    def restart(self) -> None:
        self.count = 0

    def finish(self, note: str = "") -> None:
        self._lines.end(self, note)


class Bars:
    """Bars of rich, drawn anew some times a second."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(file=self._stream),
            transient=False,
        )
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self._progress is None:
            self._stream.write(printable(text) + "\n")
        else:
            self._progress.console.print(printable(text), markup=False, highlight=False)

    def bar(self, name: str, total: int | None) -> Bar:
        """A bar of its own."""
        if self._progress is None:
            return Silent()
        task = self._progress.add_task(printable(name), total=total, note="")
        return _Bar(self._progress, task, total)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, total: int | None) -> None:
        self._progress = progress
        self._task = task
        self._total = total

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def restart(self) -> None:
        self._progress.reset(self._task)

    def finish(self, note: str = "") -> None:
        self._progress.update(self._task, completed=self._total, note=note or "done")
