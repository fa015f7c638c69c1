"""End a command's whole process tree, through the control shell's builtins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes import processes, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pytest_sandbox.runtimes.control import Control
    from pytest_sandbox.runtimes.processes import Process

ROUNDS: Final = 60
REAPED: Final = 1.0
"""Init has this many seconds to collect what was killed."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """Whose tree is to end: the child of worker `worker`, or the process `root`."""

    since: int
    """Clock ticks since boot when the command began."""
    worker: int = 0
    root: int = 0
    by_exec: bool = False
    """The engine started it: its parent is outside the sandbox. With `root` unknown, that is how it
    is found.
    """


def kill_tree(
    control: Control,
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
        table = table_of(control)
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
        session = table[hunt.worker].session if hunt.worker in table else hunt.worker
        shared = any(
            p.session == session for p in table.values() if p.pid in mine and p.pid != hunt.worker
        )
        return processes.victims(
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
        control.call(shell.send_signal("STOP", sorted(new)))
        stopped |= new
    left = stopped or look()
    while left:
        control.call(shell.send_signal("KILL", sorted(left)))
        left = look()
        if left and time.monotonic() > deadline:
            return False
        if left:
            time.sleep(0.002)
    while stopped & set(table_of(control)) and time.monotonic() < deadline - timeout + REAPED:
        time.sleep(0.002)  # a zombie still counts against the pids limit
    return True


def table_of(control: Control) -> dict[int, Process]:
    """The sandbox's processes by pid, zombies too."""
    lines = control.call(shell.dump_processes())
    return processes.parse_table(line.decode("utf-8", "replace") for line in lines)
