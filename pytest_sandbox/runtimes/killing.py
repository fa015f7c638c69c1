"""End a command's whole process tree, by whoever sees it: a Sight."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pytest_sandbox.runtimes.processes import TICKS, victims

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from pytest_sandbox.runtimes.processes import Process

ROUNDS: Final = 60
REAPED: Final = 1.0
"""Init has this many seconds to collect what was killed."""


class Hunt(NamedTuple):
    """Whose tree is to end: the child of worker `worker`, or the process `root`."""

    since: int
    """Clock ticks since boot when the command began."""
    worker: int = 0
    root: int = 0
    session: int = 0
    """The session that the command leads, where it has one of its own."""
    by_exec: bool = False
    """The engine started it: its parent is outside the sandbox. With `root` unknown, that is how it
    is found.
    """


def now_in_ticks() -> int:
    """Clock ticks since boot: what `Hunt.since` counts in."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS)


class Sight(Protocol):
    """Who sees the sandbox's processes, and can signal them."""

    def table(self) -> dict[int, Process]:
        """By pid, zombies too."""
        ...

    def signal(self, name: str, pids: Sequence[int]) -> None:
        """Signal each; one that is gone does not keep the others from it."""
        ...

    def wait(self) -> None:
        """Let a moment pass."""
        ...


def kill_tree(
    sight: Sight,
    hunt: Hunt,
    *,
    ours: Callable[[], Collection[int]],
    other_workers: Callable[[], Collection[int]],
    other_roots: Callable[[], Collection[int]],
    timeout: float = 10.0,
) -> bool:
    """Stop, then kill everything of one command. False when something of it is left after `timeout`
    seconds.

    Stopping comes first: a stopped process starts nothing new, and it keeps its pid. Raises
    ControlLost.
    """
    deadline = time.monotonic() + timeout
    root: Process | None = None
    stopped: set[int] = set()

    def look() -> set[int]:
        nonlocal root
        table = sight.table()
        if root is None:
            children = [p for p in table.values() if hunt.worker and p.parent == hunt.worker]
            if hunt.by_exec and hunt.root not in table:
                roots = {1, *other_roots()}
                children = [
                    p
                    for p in table.values()
                    if p.parent == 0 and p.pid not in roots and p.started >= hunt.since
                ]
            root = min(children, key=lambda p: p.started) if children else table.get(hunt.root)
        workers = set(other_workers())
        others = {p.pid for p in table.values() if p.parent in workers} | set(other_roots())
        mine = set(ours())
        # A worker that was started with setsid leads a session, which outlives it.
        session = hunt.session or hunt.worker
        if hunt.worker in table:
            session = table[hunt.worker].session
        shared = any(
            p.session == session for p in table.values() if p.pid in mine and p.pid != hunt.worker
        )
        return victims(
            table,
            root=root,
            since=hunt.since,
            ours=mine,
            others=others,
            session=0 if shared else session,
            known=stopped,
        )

    for _ in range(ROUNDS):
        new = look() - stopped
        if not new or time.monotonic() > deadline:
            break
        sight.signal("STOP", sorted(new))
        stopped |= new
    left = stopped or look()
    while left:
        sight.signal("KILL", sorted(left))
        left = look()
        if left and time.monotonic() > deadline:
            return False
        if left:
            sight.wait()
    while stopped & set(sight.table()) and time.monotonic() < deadline - timeout + REAPED:
        sight.wait()  # a zombie still counts against the pids limit
    return True
