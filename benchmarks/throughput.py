"""A thousand sandboxes in a row, each with a cgroup of its own, beside runc."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.bundles import RUNC, Trees
from benchmarks.contest import Bar, Contest
from benchmarks.field import DIRECT, Field

if TYPE_CHECKING:
    from collections.abc import Callable

MANY, FEW, BLOCK = 1000, 200, 50
LEAST = 6.0


def contest(field: Field, trees: Trees, rounds: int | None) -> Contest:
    """Seconds of a sandbox, in blocks of BLOCK without a pause; half of runc's come before ours,
    half after.
    """
    many, few = (MANY, FEW) if rounds is None else (2 * BLOCK, 2 * BLOCK)
    ours, runc = field.whole(DIRECT), trees.root({}).get(RUNC)
    ours()
    theirs = _row(runc, few // 2) if runc else []
    mine = _row(ours, many)
    theirs += _row(runc, few // 2) if runc else []
    samples = {DIRECT: mine} | ({RUNC: theirs} if runc else {})
    title = f"sandbox: {many:,} in a row, no pause: seconds of one, in blocks of {BLOCK}"
    found = Contest(title, samples)
    each = statistics.fmean(mine)
    found.notes.append(f"{1 / each:.0f} sandboxes a second")
    found.notes.append(
        f"the last block took {mine[-1] / mine[0]:.2f} times as long as the first one"
    )
    if runc:
        ratio = statistics.fmean(theirs) / each
        found.notes.append(f"runc: {1 / statistics.fmean(theirs):.0f} a second")
        found.bars.append(Bar("throughput against runc", ratio, LEAST, least=True))
    return found


def _row(turn: Callable[[], float | None], many: int) -> list[float]:
    """Seconds of one, for each block."""
    found = []
    for _ in range(0, many, BLOCK):
        began, own = time.perf_counter(), 0.0
        for _ in range(BLOCK):
            own += turn() or 0.0
        found.append((own or time.perf_counter() - began) / BLOCK)
    return found
