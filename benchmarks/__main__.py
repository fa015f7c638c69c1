"""`python -m benchmarks [NAME...]`: one or several of NAMES, or all; docs/benchmarks.md is written
by a run of all, or where --write asks for it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from benchmarks.contest import Contest

NAMES = (
    "collect",
    "startup",
    "sandbox",
    "pool",
    "exec",
    "fork",
    "containers",
    "pull",
    "build",
    "registry",
    "whole",
    "scale",
)
QUICK = 3


@dataclass
class Outcome:
    """What one benchmark gave: its contests, and why it ended early if it did."""

    contests: list[Contest] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0


def arguments(argv: Sequence[str] | None, names: Sequence[str] = NAMES) -> argparse.Namespace:
    """The command line; `names` are the benchmarks to choose from (one: no choice)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours beside its peers, in one run"
    )
    if len(names) > 1:
        parser.add_argument("only", nargs="*", help=f"some of {', '.join(names)}; default: all")
    parser.add_argument("--rounds", type=int, help="how often each takes its turn")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK} rounds: whether it works, no figures"
    )
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help="write the figures into docs/benchmarks.md (default: in a run of all)",
    )
    parser.add_argument("--corpus", help="folder of recipes to collect (PYTEST_SANDBOX_CORPUS)")
    parser.add_argument("--image", help="Debian image to use (default: what families.toml names)")
    parser.add_argument("--base", help="plain tar of a Debian base to use instead of an image")
    parser.add_argument("--json", action="store_true", help="print JSON, with every sample")
    given = parser.parse_args(argv)
    chosen = tuple(getattr(given, "only", ()))
    given.only = chosen or tuple(names)
    unknown = [name for name in given.only if name not in names]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: use one of {', '.join(names)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if given.write is None:
        given.write = len(names) > 1 and not chosen and not given.quick and given.rounds is None
    if given.quick and given.rounds is None:
        given.rounds = QUICK
    return given


def main(argv: Sequence[str] | None = None, names: Sequence[str] = NAMES) -> int:
    """Run the benchmarks; 1 if a bar was missed or one of them could not run."""
    given = arguments(argv, names)
    outcomes: dict[str, Outcome] = {}
    for name in given.only:
        outcomes[name] = outcome = run(name, given)
        if not given.json:
            words = f"{name}: did not run: {outcome.failure}\n" if outcome.failure else ""
            sys.stdout.write(f"{words}({name}: {outcome.seconds:.0f} s)\n\n")
            sys.stdout.flush()
    every = [contest for outcome in outcomes.values() for contest in outcome.contests]
    if given.json:
        sys.stdout.write(json.dumps([contest.as_dict() for contest in every], indent=1) + "\n")
    if given.write:
        from benchmarks.page import write

        write({name: found.contests for name, found in outcomes.items() if not found.failure})
    held = all(bar.held for contest in every for bar in contest.bars)
    return int(not held or any(outcome.failure for outcome in outcomes.values()))


def run(name: str, given: argparse.Namespace) -> Outcome:
    """One benchmark in a process of its own: its mounts, its environment and its memory are no
    other's. Contests are printed as they come.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    began = time.perf_counter()
    child = context.Process(target=_work, args=(name, given, theirs), name=name)
    child.start()
    theirs.close()
    outcome = Outcome(failure="its process was killed")
    while True:
        try:
            received: Contest | str = ours.recv()
        except EOFError:
            break
        if isinstance(received, str):
            outcome.failure = received
            break
        outcome.contests.append(received)
        if not given.json:
            sys.stdout.write(f"{received}\n\n")
            sys.stdout.flush()
    child.join()
    outcome.seconds = time.perf_counter() - began
    return outcome


def _work(name: str, given: argparse.Namespace, pipe: Connection) -> None:
    """Send every contest, then why it ended: an empty text where all is well."""
    failure = "it ended the process"
    try:
        for contest in importlib.import_module(f"benchmarks.{name}").contests(given):
            pipe.send(contest)
        failure = ""
    except SystemExit as ended:
        failure = str(ended)
    except BaseException as wrong:
        traceback.print_exc()
        failure = f"{type(wrong).__name__}: {wrong}"
    finally:
        pipe.send(failure)
        pipe.close()


if __name__ == "__main__":
    sys.exit(main())
