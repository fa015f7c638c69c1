"""One contest: candidates that do the same work, run in turns, and the bars that ours must hold.

Turns are interleaved and their order rotates, so that a slow minute of the machine falls on all of
them alike. Compared are medians; p95 shows how far the slow ones lie. Turns may be paced: a tight
loop hides what the kernel defers (the first attach to a cgroup after some 40 ms waits for an RCU
grace period), and no test run is a tight loop.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Candidates = Mapping[str, Callable[[], float | None]]

PEERS = ("container", "pytest11.testinfra")
"""The names of pytest plugins that the dependency group `bench` brings."""
PACE = 0.03
"""Seconds of idling before a turn, where single sandboxes and commands are measured."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise: `value` is at most (or with `least`, at least) `limit`."""

    what: str
    value: float
    limit: float
    unit: str = "x"
    least: bool = False

    @property
    def held(self) -> bool:
        """Whether the promise holds; no number never does."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        word = "at least" if self.least else "at most"
        verdict = "held" if self.held else "MISSED"
        figures = f"{self.value:.2f}{self.unit} ({word} {self.limit:g}{self.unit})"
        return f"{verdict}: {self.what}: {figures}"


@dataclass(slots=True)
class Contest:
    """The seconds of each candidate, in the order of the rounds; the first candidate is ours."""

    title: str
    samples: dict[str, list[float]]
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Candidate -> why it could not take part."""
    unit: str = "s"
    """Of the samples: seconds, else a word that is written behind the number (`MiB`)."""

    @property
    def ours(self) -> str:
        """The name of our own candidate."""
        return next(iter(self.samples))

    def median(self, name: str) -> float:
        """The candidate's median in seconds."""
        return statistics.median(self.samples[name])

    def ratio(self, name: str, over: str) -> float:
        """How many times as long as `over` the candidate `name` takes, by medians."""
        return self.median(name) / self.median(over)

    def slower(self, name: str, over: str) -> float:
        """Seconds that `name` takes longer than `over`: the median of the rounds' own differences.

        Both of a round ran within moments of each other, so load that comes and goes cancels out.
        """
        pairs = zip(self.samples[name], self.samples[over], strict=True)
        return statistics.median(first - second for first, second in pairs)

    def p95(self, name: str) -> float:
        """The candidate's 95th percentile in seconds."""
        return percentile(self.samples[name], 95)

    def bar(self, what: str, name: str, over: str, limit: float, *, least: bool = False) -> None:
        """Hold `name` to `limit` times `over` (by medians), where both took part."""
        if name in self.samples and over in self.samples:
            self.bars.append(Bar(what, self.ratio(name, over), limit, least=least))

    def text(self, value: float) -> str:
        """A sample or a median as people read it."""
        return duration(value) if self.unit == "s" else f"{value:.2f} {self.unit}"

    def as_dict(self) -> dict[str, Any]:
        """For --json: raw samples too."""
        return {
            "title": self.title,
            "unit": self.unit,
            "samples": self.samples,
            "median": {name: self.median(name) for name in self.samples},
            "p95": {name: self.p95(name) for name in self.samples},
            "bars": [
                {"what": bar.what, "value": bar.value, "limit": bar.limit, "held": bar.held}
                for bar in self.bars
            ],
            "notes": self.notes,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        width = max(map(len, self.samples), default=0)
        lines = [self.title]
        if self.samples:
            rounds = len(self.samples[self.ours])
            head = f"{'':{width}}  {'median':>10}  {'p95':>10}  against ours  ({rounds} rounds)"
            lines.append(head)
        for name in self.samples:
            against = "" if name == self.ours else f"{self.ratio(name, self.ours):.2f}x"
            lines.append(
                f"{name:{width}}  {self.text(self.median(name)):>10}"
                f"  {self.text(self.p95(name)):>10}  {against:>12}"
            )
        lines += [f"{name}: did not take part: {why}" for name, why in self.skipped.items()]
        return "\n".join([*lines, *self.notes, *map(str, self.bars)])


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if abs(seconds) < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s"


def interleave(
    candidates: Candidates,
    rounds: int,
    *,
    warmup: int = 1,
    pace: float = 0.0,
    every: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, list[float]]:
    """Call every candidate once a round; the seconds it gives, or the wall clock of the call.

    The order rotates, and after a turn of all of them it is reversed: what a candidate leaves to be
    done (a daemon that tidies up) falls on different ones. The first `warmup` rounds fill caches
    and are not counted. Before each turn `pace` seconds pass idly. A candidate of `every` takes
    its turn in every so manieth round alone: one that takes long.
    """
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order[::-1] if number // len(names) % 2 else order:
            if number % every.get(name, 1):
                continue
            if pace:
                time.sleep(pace)
            began = time.perf_counter()
            measured = candidates[name]()
            took = time.perf_counter() - began if measured is None else measured
            if number >= 0:
                samples[name].append(took)
    return samples


def environment(temp: Path) -> dict[str, str]:
    """This process's environment with a bytecode cache below `temp`: as for an installed plugin,
    sources are compiled once (in the warm-up), even where this shell forbids to write caches.

    The pytest plugins of peers, which are installed beside ours to be measured, are not loaded.
    """
    env = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    blocked = " ".join(f"-p no:{name}" for name in PEERS)
    return {**env, "PYTHONPYCACHEPREFIX": str(temp / "bytecode"), "PYTEST_ADDOPTS": blocked}


def run_process(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    expect: set[int],
    timeout: float = 600.0,
) -> float:
    """Wall clock of a whole process in seconds; another exit status than expected ends the
    benchmark with the process's last lines.
    """
    began = time.perf_counter()
    done = subprocess.run(
        argv, cwd=cwd, env=dict(env), capture_output=True, text=True, check=False, timeout=timeout
    )
    took = time.perf_counter() - began
    if done.returncode not in expect:
        words = " ".join(map(str, argv))
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        sys.exit(f"{words}\nexited with status {done.returncode}:\n{tail}")
    return took
