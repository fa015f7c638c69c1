"""Many sandbox tests in one run: the last ones take no longer than the first, and neither memory,
mounts nor disk grow. 5,000 tests in one process, and 500 that two workers of pytest-xdist share.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian, gauge
from benchmarks.contest import Bar, Contest, run_process
from benchmarks.debian import NAME
from benchmarks.field import Field

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

OURS, BARE = "a test with a sandbox", "the same test without one"
MANY, SHARED, BLOCKS = 5000, 500, 25
SLOWER, MEMORY_MIB, MOUNTS, DISK_MIB = 1.25, 8.0, 40, 32.0
"""Mounts and disk may hold what waits to be closed, and what waits to be used."""
TEST = """\
import pytest

@pytest.mark.sandbox(image={image!r})
@pytest.mark.parametrize("n", range({tests}))
def test_it({fixtures}n):
    {body}
"""
IN_SANDBOX = 'assert sandbox.run(["sh", "-c", "echo written > /srv/file"]).ok'
OUTSIDE = "assert n >= 0"

Notes = list[dict[str, Any]]


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Two contests; each checks that every test passed and that nothing is left."""
    with ExitStack() as stack:
        field = Field(stack, debian.of(given))
        many = MANY if given.rounds is None else 50 * given.rounds
        shared = SHARED if given.rounds is None else 20 * given.rounds
        yield alone(field, many)
        yield together(field, shared)


def alone(field: Field, tests: int) -> Contest:
    """One process; beside it the same tests without sandboxes: pytest itself keeps every report."""
    [ours] = _run(field, tests, tests // BLOCKS)
    [bare] = _run(field, tests, tests // BLOCKS, body=OUTSIDE, fixtures="")
    samples = {OURS: _pace(ours), BARE: _pace(bare)}
    contest = Contest(f"scale: {tests:,} tests in one process: seconds of one", samples)
    _hold(contest, ours, bare, samples[OURS])
    return contest


def together(field: Field, tests: int) -> Contest:
    """Two workers of pytest-xdist."""
    workers = _run(field, tests, tests // BLOCKS // 2, "-n", "2")
    if len(workers) != 2:
        sys.exit(f"scale: {len(workers)} workers took part, not 2")
    bare = _run(field, tests, tests // BLOCKS // 2, "-n", "2", body=OUTSIDE, fixtures="")
    samples = {f"{OURS}, worker {n}": _pace(notes) for n, notes in enumerate(workers)}
    contest = Contest(f"scale: {tests:,} tests shared by two workers: seconds of one", samples)
    for notes, control, pace in zip(workers, bare, samples.values(), strict=True):
        _hold(contest, notes, control, pace)
    return contest


def _run(
    field: Field,
    tests: int,
    every: int,
    *options: str,
    body: str = IN_SANDBOX,
    fixtures: str = "sandbox, ",
) -> list[Notes]:
    """Run pytest; what each of its processes noted."""
    folder = field.temp / f"scale-{tests}-{len(options)}-{len(fixtures)}"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    text = TEST.format(image=NAME, tests=tests, body=body, fixtures=fixtures)
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    environ = {**field.environ, gauge.VARIABLE: f"{max(every, 1)} {folder / 'notes'}"}
    environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gauge"]
    words += ["-p", "no:cacheprovider", "--sandbox-runtime=oci", *options]
    run_process(words, cwd=folder, env=environ, expect={0}, timeout=3600)
    left = [
        str(path)
        for name in ("sandboxes", "owners", "uses")
        for path in (field.data / "oci" / name).glob("*")
    ]
    if left:
        sys.exit(f"scale: the run left {', '.join(left[:5])}")
    return [
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("notes.*"))
    ]


def _pace(notes: Notes) -> list[float]:
    """Seconds of one test, for each block but the first, which begins with imports."""
    return [
        (after["at"] - before["at"]) / (after["tests"] - before["tests"])
        for before, after in itertools.pairwise(notes)
    ]


def _hold(contest: Contest, notes: Notes, bare: Notes, pace: list[float]) -> None:
    # The quickest blocks: what others do on the machine makes some slower, and none quicker.
    fifth = max(1, len(pace) // 5)
    first, last = min(pace[:fifth]), min(pace[-fifth:])
    grown = {name: notes[-1][name] - notes[0][name] for name in notes[0]}
    control = bare[-1]["rss"] - bare[0]["rss"]
    mib = 1 << 20
    contest.notes.append(
        f"{1 / statistics.median(pace):.0f} tests a second; memory {notes[0]['rss'] / mib:.0f} MiB "
        f"after {notes[0]['tests']} tests, {notes[-1]['rss'] / mib:.0f} MiB after "
        f"{notes[-1]['tests']} (without sandboxes {control / mib:+.1f} MiB in between); "
        f"descriptors {grown['descriptors']:+d}, threads {grown['threads']:+d}; "
        f"mounts at most {max(note['mounts'] for note in notes)}, files of sandboxes at most "
        f"{max(note['bytes'] for note in notes) / mib:.1f} MiB"
    )
    contest.bars += [
        Bar("the last fifth against the first (quickest blocks)", last / first, SLOWER),
        Bar("memory that sandboxes add", (grown["rss"] - control) / mib, MEMORY_MIB, " MiB"),
        Bar("mounts that come", grown["mounts"], MOUNTS, ""),
        Bar("disk that comes", grown["bytes"] / mib, DISK_MIB, " MiB"),
        Bar("entries that come", grown["entries"], 4 * MOUNTS, ""),
    ]


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("scale",)))
