"""Weaker limits, for an ordinary user without a cgroup: rlimits, affinity, and watching.

Processes are bounded by RLIMIT_NPROC of the sandbox's own user namespace, CPUs by affinity (whole
ones), and memory by a watcher that adds up what the sandbox's processes have resident and kills
the largest. A process can evade it for a moment; a cgroup cannot be evaded.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, RuntimeUnavailable
from pytest_sandbox.oci import linux
from pytest_sandbox.runtimes.oci.members import members

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtimes.oci.order import LimitOrder

COUNTERS: Final = struct.Struct("=QQQ")
"""Memory kills, times that the number of processes was at its limit, peak of memory in bytes."""
_PERIOD: Final = 0.04
_PAGE: Final = mmap.PAGESIZE
_KILL: Final = signal.SIGKILL


def rlimits(limits: LimitOrder) -> dict[str, int]:
    """The rlimits that stand in for a cgroup."""
    if "pids" in limits.weak and limits.pids is not None:
        return {"RLIMIT_NPROC": limits.pids}
    return {}


def impose(pid: int, limits: LimitOrder, counters: int, *, spare: bool = False) -> list[int]:
    """Put the weaker limits on the sandbox of `pid`, which waits to be started; the watcher's pid.

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
    if memory is None and pids is None:
        return []
    # The supervisor's child, as the sandbox is: the worker goes on, or ends, without it.
    watcher = linux.clone3(linux.CLONE_PARENT)
    if watcher:
        return [watcher]
    try:
        _watch(pid, memory, pids, counters, spare=spare)
    finally:
        os._exit(0)


def is_full(first: int, top: int, limits: LimitOrder) -> bool:
    """Whether a sandbox has as many processes and threads as it may have (see members)."""
    if "pids" not in limits.weak or limits.pids is None:
        return False
    return sum(_tasks(pid) for pid in members(first, top)) >= limits.pids - 1


def _tasks(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except OSError:
        return 0


def _watch(
    first: int, memory: int | None, pids: int | None, counters: int, *, spare: bool
) -> None:
    linux.close_all_but([counters])  # a job's channels are not the watcher's to hold
    linux.prctl(linux.PR_SET_PDEATHSIG, 0)  # it ends with what it watches
    kills, full, peak = 0, 0, 0
    was_full = False
    while Path(f"/proc/{first}").exists():
        tasks, resident = 0, {}
        for pid in members(first, os.getppid()):
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
                # Shared file pages are left out: many processes map the same.
                if pid != first or not spare:
                    resident[pid] = (int(fields[1]) - int(fields[2])) * _PAGE
                tasks += _tasks(pid)
        total = sum(resident.values())
        peak = max(peak, total)
        if memory is not None and total > memory:
            with contextlib.suppress(ProcessLookupError):
                os.kill(max(resident, key=lambda pid: _badness(pid, resident, memory)), _KILL)
            kills += 1
        now_full = pids is not None and tasks >= pids - 1
        full += now_full and not was_full
        was_full = now_full
        os.pwrite(counters, COUNTERS.pack(kills, full, peak), 0)
        time.sleep(_PERIOD)


def _badness(pid: int, resident: Mapping[int, int], memory: int) -> float:
    """As the kernel chooses: by memory, and what the process asked for (proc(5), oom_score_adj)."""
    asked = 0
    with contextlib.suppress(OSError, ValueError):
        asked = int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii"))
    return resident[pid] + asked * memory / 1000
