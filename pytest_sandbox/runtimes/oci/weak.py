"""Weaker limits, for an ordinary user without a cgroup: rlimits, affinity, and watching.

Processes are bounded by RLIMIT_NPROC of the sandbox's own user namespace, CPUs by affinity (whole
ones), and memory by a process that watches (see watcher). A process can evade it for a moment; a
cgroup cannot be evaded.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from pytest_sandbox.errors import Blame, RuntimeUnavailable
from pytest_sandbox.runtimes.oci import watcher
from pytest_sandbox.runtimes.oci.members import members, tasks

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.order import LimitOrder


def rlimits(limits: LimitOrder) -> dict[str, int]:
    """The rlimits that stand in for a cgroup."""
    if "pids" in limits.weak and limits.pids is not None:
        return {"RLIMIT_NPROC": limits.pids}
    return {}


def impose(pid: int, limits: LimitOrder, counters: int, *, spare: bool = False) -> None:
    """Put the weaker limits on the sandbox of `pid`, which waits to be started.

    `spare`: the first process is ours, and its memory does not count. `counters` is the file that
    the watcher writes COUNTERS into. Raises RuntimeUnavailable if the limit of CPUs cannot be set.
    """
    if "cpus" in limits.weak and limits.cpus is not None:
        usable = sorted(os.sched_getaffinity(0))[: max(1, math.ceil(limits.cpus))]
        try:
            os.sched_setaffinity(pid, usable)
        except OSError as exc:
            msg = f"the limit of {limits.cpus:g} CPUs cannot be set by affinity: {exc.strerror}"
            step = "leave the limit of CPUs out, or use a machine whose control groups set it"
            raise RuntimeUnavailable(msg, blame=Blame.HOST, next_step=step) from exc
    memory = limits.memory if "memory" in limits.weak else None
    pids = limits.pids if "pids" in limits.weak else None
    if memory is not None or pids is not None:
        watcher.watch(pid, counters, memory=memory, pids=pids, spare=spare)


def is_full(first: int, top: int, limits: LimitOrder) -> bool:
    """Whether a sandbox has as many processes and threads as it may have (see members)."""
    if "pids" not in limits.weak or limits.pids is None:
        return False
    return sum(tasks(pid) for pid in members(first, top)) >= limits.pids - 1
