"""`pytest-sandbox logs`: what a detached sandbox wrote."""

from __future__ import annotations

import datetime
import re
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import click

from pytest_sandbox.cli.containers import complain, say, swept
from pytest_sandbox.errors import SandboxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.runtimes.oci.containers.folder import Container
    from pytest_sandbox.runtimes.oci.containers.log import Entry

_LINES: Final = re.compile(rb"[^\n]*\n|[^\n]+")


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="The last N lines.")
@click.option("-t", "--timestamps", is_flag=True, help="Write the time before each line.")
@click.argument("name")
def command(name: str, *, follow: bool, tail: int | None, timestamps: bool) -> None:
    """Print what a detached sandbox wrote: its stdout on stdout, its stderr on stderr.

    The last 32 MiB are kept, at most 64.
    """
    from pytest_sandbox.runtimes.oci.containers import log

    try:
        container = swept().find(name)
        if not (container.folder / log.LOG).exists():
            msg = f"{container.called} was started in the foreground: its output is not kept"
            raise UsageError(msg, next_step="run it with -d to have a log")
    except SandboxError as wrong:
        complain(wrong)
        sys.exit(1)
    _print(container, follow=follow, tail=tail, timestamps=timestamps)


def _print(container: Container, *, follow: bool, tail: int | None, timestamps: bool) -> None:
    from pytest_sandbox.runtimes.oci.containers import log

    def over() -> bool:
        return container.status not in {"created", "running"} or not container.folder.exists()

    writer = _Writer(timestamps=timestamps)
    try:
        if tail is None:
            writer.write(log.read(container.folder, follow=follow, over=over))
            return
        entries = list(log.read(container.folder))
        writer.write(last_lines(entries, tail))
        if follow:
            seen = sum(len(entry.data) for entry in entries if entry.stream)
            writer.write(_behind(log.read(container.folder, follow=True, over=over), seen))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


class _Writer:
    """Pieces of output, each to its stream."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._fresh = {1: True, 2: True}

    def write(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.stream == 0:
                say(f"{entry.data.decode()} bytes of older output are gone")
                continue
            out = sys.stdout.buffer if entry.stream == 1 else sys.stderr.buffer
            out.write(self._stamped(entry) if self._timestamps else entry.data)
            out.flush()

    def _stamped(self, entry: Entry) -> bytes:
        moment = datetime.datetime.fromtimestamp(entry.time, datetime.UTC)
        stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode() + b" "
        lines = []
        for line in entry.data.splitlines(keepends=True):
            lines.append(stamp + line if self._fresh[entry.stream] else line)
            self._fresh[entry.stream] = line.endswith(b"\n")
        return b"".join(lines)


def last_lines(entries: Iterable[Entry], count: int) -> list[Entry]:
    """The entries that hold the last `count` lines of both streams together, cut to those lines.

    A line may come in several pieces, with some of the other stream's between them: it counts once,
    where it ends.
    """
    found: deque[Entry] = deque()
    left = count
    later: dict[int, bool] = {}  # of each stream: whether the piece behind this one is shown
    for entry in reversed([entry for entry in entries if entry.stream]):
        kept: deque[bytes] = deque()
        for piece in reversed(_LINES.findall(entry.data)):
            begins = piece.endswith(b"\n") or entry.stream not in later
            if begins:
                later[entry.stream] = left > 0
                left -= left > 0
            if later[entry.stream]:
                kept.appendleft(piece)
        if kept:
            found.appendleft(entry._replace(data=b"".join(kept)))
    return list(found)


def _behind(entries: Iterable[Entry], seen: int) -> Iterable[Entry]:
    """What comes after so many bytes."""
    for entry in entries:
        if not entry.stream:
            continue
        if seen >= len(entry.data):
            seen -= len(entry.data)
            continue
        yield entry._replace(data=entry.data[seen:])
        seen = 0
