"""Which processes belong to a command: a pure computation over `/proc/*/stat` lines.

The caller dumps the process table of the sandbox, stops the victims, dumps again until no new one
shows, kills them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


TICKS: Final = 100
"""Clock ticks a second in /proc (USER_HZ is 100 on every Linux architecture)."""


class Process(NamedTuple):
    """One line of the process table; `started` is in clock ticks since boot."""

    pid: int
    parent: int
    session: int
    state: str
    started: int
    name: str = ""

    @property
    def dead(self) -> bool:
        """A zombie, or about to be none."""
        return self.state in {"Z", "X", "x"}

    def after(self, other: Process) -> bool:
        """Whether it was started after `other`: by clock tick, within one tick by pid."""
        return (self.started, self.pid) > (other.started, other.pid)


def parse_stat(line: str) -> Process | None:
    """Read one line of `/proc/PID/stat`; None where it is none. The name may hold blanks and
    brackets.
    """
    head, sep, rest = line.rpartition(")")
    pid, opened, name = head.partition(" (")
    fields = rest.split()
    if not sep or not opened or len(fields) < 20:
        return None
    try:
        return Process(int(pid), int(fields[1]), int(fields[3]), fields[0], int(fields[19]), name)
    except ValueError:
        return None


def parse_table(lines: Iterable[str]) -> dict[int, Process]:
    """The process table by pid; lines that are none are passed over."""
    return {found.pid: found for line in lines if (found := parse_stat(line)) is not None}


def descendants(table: Mapping[int, Process], roots: Iterable[int]) -> set[int]:
    """The roots that exist and everything below them."""
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in table]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def victims(
    table: Mapping[int, Process],
    *,
    root: Process | None,
    since: int,
    ours: Collection[int],
    others: Collection[int] = (),
    session: int = 0,
    known: Collection[int] = (),
) -> set[int]:
    """The living processes of one command.

    `root` is the command's first process (None when it is gone), `since` the clock tick at which
    the command began, `ours` the sandbox's own processes (init, shells; never a victim, nor are
    they followed), `others` the first processes of other running commands. An orphan (its parents
    ended, so it hangs from init) belongs to the command when it was started after the command's
    root. While other commands run, that does not tell whose it is: then only orphans of the
    command's own `session` count. `known` are victims of an earlier round: what they started
    counts.
    """
    protected = set(ours) | descendants(table, others)
    roots = set(known) | ({root.pid} if root is not None else set())
    found = descendants({k: v for k, v in table.items() if k not in protected}, roots)
    orphans = [
        process
        for process in table.values()
        if process.pid not in protected
        and process.pid not in found
        and (process.parent == 1 or (process.parent and process.parent not in table))
    ]
    for process in orphans:
        young = process.after(root) if root is not None else process.started >= since
        if young and (not others or (session and process.session == session)):
            found |= descendants(table, [process.pid]) - protected
    return {pid for pid in found if not table[pid].dead}
