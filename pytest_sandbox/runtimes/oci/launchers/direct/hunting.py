"""Ending a command's processes where no cgroup of its own holds them together."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.runtimes import processes
from pytest_sandbox.runtimes.killing import Hunt, kill_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class OwnSight:
    """The processes of the sandbox, as its process 1 sees them; see Sight. `reap` collects what
    has ended.
    """

    def __init__(self, reap: Callable[[], None]) -> None:
        self._reap = reap

    def wait(self) -> None:
        self._reap()
        time.sleep(0.001)

    def table(self) -> dict[int, processes.Process]:
        lines = []
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdigit():
                with contextlib.suppress(OSError):
                    lines.append(Path(f"/proc/{name}/stat").read_text("utf-8", "replace"))
        return processes.parse_table(lines)

    def signal(self, name: str, pids: Sequence[int]) -> None:
        number = signal.Signals[f"SIG{name}"]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def kill_processes(
    hunt: Hunt, others: Iterable[int], reap: Callable[[], None], deadline: float
) -> bool:
    """End the processes of one command; `others` are the first ones of other commands, `reap`
    collects children.
    """
    known = list(others)
    return kill_tree(
        OwnSight(reap),
        hunt,
        ours=lambda: {1},
        other_workers=tuple,
        other_roots=lambda: known,
        timeout=max(deadline - time.monotonic(), 0.1),
    )
