"""One sandbox that is created, runs `true` and is removed, without a pool: beside what starts
sandboxes without a daemon, and beside engines; as root and as an ordinary user; one after another
with a pause, and a thousand in a row. And what a sandbox takes that waits.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian, idle, isolation, ordinary, throughput
from benchmarks.bundles import RUNC, Trees, own_mounts
from benchmarks.contest import PACE, Bar, Contest, interleave
from benchmarks.daemons import Daemons
from benchmarks.field import DIRECT, ENGINE, LAUNCHERS, Field

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

LEAST, SPREAD = 5.0, 1.6
ROUNDS, OTHERS = 100, 15


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Five contests; every candidate checks what it got."""
    import os

    if os.geteuid() != 0:
        sys.exit("sandbox: its peers need root for their mounts")
    own_mounts()
    with ExitStack() as stack:
        field = Field(stack, debian.of(given))
        trees = Trees(field)
        rounds = given.rounds or ROUNDS
        yield single(field, trees, rounds)
        yield ordinary.contest(field, rounds)
        yield throughput.contest(field, trees, given.rounds)
        yield idle.contest(field, given.rounds)
        daemons = Daemons(field, given)
        turns: dict[str, Callable[[], float | None]] = {DIRECT: field.whole(DIRECT)}
        found = interleave(turns | daemons.whole(), given.rounds or OTHERS, pace=PACE)
        title = "sandbox: create, run `true`, remove, beside engines"
        yield Contest(title, found, skipped=daemons.skipped)


def single(field: Field, trees: Trees, rounds: int) -> Contest:
    """Ours beside peers without a daemon."""
    skipped: dict[str, str] = {}
    ours = {name: field.whole(name) for name in LAUNCHERS}
    turns = {**ours, **trees.root(skipped)}
    found = interleave(turns, rounds, warmup=2, pace=PACE)
    title = "sandbox: create, run `true`, remove; no pool"
    contest = Contest(title, found, skipped=skipped)
    contest.bar(f"{RUNC} against direct", RUNC, DIRECT, LEAST, least=True)
    spread = contest.p95(DIRECT) / contest.median(DIRECT)
    contest.bars.append(Bar("p95 of direct against its median", spread, SPREAD))
    shut_off(field, contest)
    return contest


def shut_off(field: Field, contest: Contest) -> None:
    """Hold direct to every isolation that runc gives to the same sandbox."""
    shown = {}
    for name in (DIRECT, ENGINE):
        system = field.start(name)
        try:
            result = system.run(["sh", "-c", isolation.SCRIPT])
        finally:
            system.close()
        shown[name] = isolation.held(isolation.facts(result.stdout))
    lost = sorted(shown[ENGINE] - shown[DIRECT])
    both = sorted(shown[ENGINE] & shown[DIRECT])
    contest.notes.append(f"isolation that direct shows from inside, as runc's: {', '.join(both)}")
    contest.notes += [f"direct lacks {one}" for one in lost]
    contest.bars.append(Bar("isolations of runc that direct lacks", len(lost), 0, unit=""))
    contest.bars.append(Bar("isolations seen", len(shown[ENGINE]), 20, unit="", least=True))


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("sandbox",)))
