"""`python -m benchmarks [NAME...] [--rounds N] [--json]`: one or several of NAMES, or all."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.contest import Contest

NAMES = ("collect", "startup", "sandbox", "registry", "pull", "containers")


def arguments(argv: Sequence[str] | None, names: Sequence[str] = NAMES) -> argparse.Namespace:
    """The command line; `names` are the benchmarks to choose from (one: no choice)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours beside its peers, in one run"
    )
    if len(names) > 1:
        parser.add_argument("only", nargs="*", help=f"some of {', '.join(names)}; default: all")
    parser.add_argument("--rounds", type=int, help="how often each takes its turn")
    parser.add_argument("--corpus", help="folder of recipes to collect (PYTEST_SANDBOX_CORPUS)")
    parser.add_argument("--image", help="Debian image to use (default: what families.toml names)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every sample")
    given = parser.parse_args(argv)
    given.only = tuple(getattr(given, "only", ())) or tuple(names)
    unknown = [name for name in given.only if name not in names]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: use one of {', '.join(names)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return given


def main(argv: Sequence[str] | None = None, names: Sequence[str] = NAMES) -> int:
    """Run the benchmarks; 1 if a bar was missed."""
    given = arguments(argv, names)
    contests: list[Contest] = []
    for name in given.only:
        for contest in importlib.import_module(f"benchmarks.{name}").contests(given):
            contests.append(contest)
            if not given.json:
                sys.stdout.write(f"{contest}\n\n")
                sys.stdout.flush()
    if given.json:
        sys.stdout.write(json.dumps([contest.as_dict() for contest in contests], indent=1) + "\n")
    return int(not all(bar.held for contest in contests for bar in contest.bars))


if __name__ == "__main__":
    sys.exit(main())
