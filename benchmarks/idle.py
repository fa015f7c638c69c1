"""What a sandbox takes that waits for a command."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contest import Bar, Contest
from benchmarks.field import DIRECT, ENGINE, Field, expect

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.base import System

MANY, TIMES = 100, 3
MOST_MIB = 1.5
_CACHE = ("MemFree", "Buffers", "Cached", "SwapCached")


def contest(field: Field, rounds: int | None) -> Contest:
    """MiB of one sandbox: how much more the whole machine uses with MANY of them, kernel memory
    with it (all that is neither free nor page cache), each of which has run a command.
    """
    times = TIMES if rounds is None else 1
    samples: dict[str, list[float]] = {DIRECT: [], ENGINE: []}
    private: dict[str, float] = {}
    for _ in range(times):
        for name, found in samples.items():
            taken, private[name] = _taken(field, name)
            found.append(taken)
    title = f"sandbox: memory of one that waits, of {MANY}"
    told = Contest(title, samples, unit="MiB")
    told.notes += [
        f"{name}: of that, {mib:.2f} MiB are pages of its processes (Pss)"
        for name, mib in private.items()
    ]
    worst = max(samples[DIRECT])
    told.bars.append(Bar("an idle sandbox", worst, MOST_MIB, unit=" MiB"))
    return told


def _taken(field: Field, name: str) -> tuple[float, float]:
    """MiB of one by the machine's own account, and by its processes'."""
    systems: list[System] = [field.start(name)]  # what is loaded once does not count
    try:
        expect(systems[0].run(["true"]).ok)
        processes = _children()
        before = _used()
        for _ in range(MANY):
            systems.append(field.start(name))
            expect(systems[-1].run(["true"]).ok)
        more = _used() - before
        pages = _pss(_children() - processes)
    finally:
        for system in systems:
            system.close()
    return more / MANY / (1 << 20), pages / MANY / (1 << 20)


def _used() -> int:
    """Bytes that are neither free nor page cache, when what was freed has come back."""
    gc.collect()
    time.sleep(0.5)
    found = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    # Cached holds the pages of tmpfs, too: those are no cache.
    return found["MemTotal"] - sum(found[name] for name in _CACHE) + found["Shmem"]


def _children() -> set[int]:
    """Every process below this one."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        below = parents.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def _pss(processes: set[int]) -> int:
    """Their shares of pages, in bytes."""
    total = 0
    for pid in processes:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")
        )
    return total
