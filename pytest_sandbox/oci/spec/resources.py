"""Limits of a sandbox -> linux.resources and rlimits.

The runtime writes the files of either cgroup version from the same fields: memory.limit is
memory.limit_in_bytes or memory.max; memory.swap is memory and swap together (memory.memsw, or
memory.swap.max after a subtraction); quota and period are cpu.cfs_* or cpu.max; pids.max is the
same in both.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST_MEMORY: Final = 6 << 20
MOST_MEMORY: Final = 1 << 62
MOST_CPUS: Final = 8192
"""No kernel runs on more (CONFIG_NR_CPUS of x86)."""
MOST_PIDS: Final = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels; pids.max takes no more."""
PERIOD: Final = 100_000
"""Microseconds of one round of the cpu quota."""
LEAST_QUOTA: Final = 1_000
SOFT_NOFILE: Final = 1024
MOST_NOFILE: Final = 524_288


class ResourceLimits(NamedTuple):
    """What was asked for; None is no limit. `memory` is in bytes and counts swap (one limit),
    `cpus` in cores, `pids` and `nofile` are counts.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    nofile: int | None = None

    def in_cgroup(self) -> list[str]:
        """The names of the limits that need a cgroup."""
        return [name for name in ("memory", "cpus", "pids") if getattr(self, name) is not None]


def resources(limits: ResourceLimits, *, swap: bool = True) -> dict[str, Any]:
    """`linux.resources` for a sandbox with a cgroup. `swap`: the kernel accounts for swap, so that
    it can be shut off. Raises UsageError for a limit that no kernel takes.

    Devices are denied but for those that the runtime itself makes (null, zero, full, random,
    urandom, tty, ptmx, pts); a user namespace cannot make others anyway.
    """
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.memory is not None:
        if limits.memory < LEAST_MEMORY:
            msg = f"a memory limit of {limits.memory} bytes; the least is {LEAST_MEMORY}"
            raise UsageError(msg, next_step="give it 6m or more")
        if limits.memory > MOST_MEMORY:
            msg = f"a memory limit of {limits.memory} bytes is more than any machine has"
            raise UsageError(msg, next_step="give it less, or no limit")
        found["memory"] = {"limit": limits.memory}
        if swap:
            found["memory"]["swap"] = limits.memory
    if limits.cpus is not None:
        if limits.cpus > MOST_CPUS:
            msg = f"a limit of {limits.cpus:g} cpus; the most is {MOST_CPUS}"
            raise UsageError(msg, next_step="give it less, or no limit")
        quota = round(limits.cpus * PERIOD)
        if quota < LEAST_QUOTA:
            msg = f"a limit of {limits.cpus} cpus; the least is {LEAST_QUOTA / PERIOD}"
            raise UsageError(msg, next_step="give it 0.01 or more")
        found["cpu"] = {"quota": quota, "period": PERIOD}
    if limits.pids is not None:
        if limits.pids < 1:
            msg = f"a limit of {limits.pids} processes"
            raise UsageError(msg, next_step="give it 1 or more")
        if limits.pids > MOST_PIDS:
            msg = f"a limit of {limits.pids} processes; the most is {MOST_PIDS}"
            raise UsageError(msg, next_step="give it less, or no limit")
        found["pids"] = {"limit": limits.pids}
    return found


def rlimits(
    limits: ResourceLimits,
    extra: Mapping[str, int] | None = None,
    *,
    hard_nofile: int | None = None,
) -> list[dict[str, Any]]:
    """`process.rlimits`: RLIMIT_NOFILE, and `extra` (like RLIMIT_AS -> value, soft and hard).

    Without a limit, files are 1024 soft and 524288 hard, as far as the host's own hard limit goes
    (`hard_nofile`, this process's if None): no process can raise that one. A limit that was asked
    for is both soft and hard, and lower where the host's is.
    """
    if hard_nofile is None:
        hard_nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = hard_nofile if hard_nofile >= 0 else 1 << 30
    if limits.nofile is None:
        hard = min(MOST_NOFILE, most)
        soft = min(SOFT_NOFILE, hard)
    elif limits.nofile < 1:
        msg = f"a limit of {limits.nofile} open files"
        raise UsageError(msg, next_step="give it 1 or more")
    else:
        soft = hard = min(limits.nofile, most)
    found = [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]
    return found + [{"type": n, "soft": v, "hard": v} for n, v in (extra or {}).items()]
