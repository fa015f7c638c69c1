"""Collecting a corpus of recipes, against a bare plugin that only parses the TOML.

Without a corpus it is many copies of the shipped recipes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import Bar, Contest, environment, interleave, run_process

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

TARGETS = "linux/*/*"
LIMIT = 1.5
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
COPIES = 80
_ITEM = re.compile(r"^(.+\.toml)::(install\[[a-z0-9-]+\]|load)$")


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """One contest: whole processes of `pytest --collect-only -q`."""
    corpus = given.corpus or os.environ.get("PYTEST_SANDBOX_CORPUS")
    with (
        tempfile.TemporaryDirectory(prefix="bench-collect-") as temp,
        tempfile.TemporaryDirectory(prefix="bench-corpus-") as copied,
    ):
        folder = Path(corpus).resolve() if corpus else copies(Path(copied))
        yield _contest(folder, Path(temp), given.rounds or 10)


def copies(folder: Path) -> Path:
    """COPIES of each shipped recipe, each with a name of its own."""
    for path in sorted(RECIPES.glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        for number in range(COPIES):
            name = f"{path.stem}-{number}"
            own = text.replace(f'name = "{path.stem}"', f'name = "{name}"', 1)
            (folder / f"{name}.toml").write_text(own, encoding="utf-8")
    return folder


def _contest(corpus: Path, temp: Path, rounds: int) -> Contest:
    # A root of its own: no configuration of this project takes part.
    (temp / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    common = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    common += ["-W", "ignore", f"--rootdir={temp}", "-c", str(temp / "pytest.ini")]
    ours = [*common, "--sandbox", "--sandbox-target", TARGETS, str(corpus)]
    bare = [*common, "-p", "no:sandbox", "-p", "benchmarks.bare_plugin", str(corpus)]
    names, total = _names(ours, corpus, temp)
    items = temp / "items.json"
    items.write_text(json.dumps(names), encoding="utf-8")
    here = str(Path(__file__).resolve().parents[1])
    env = {**environment(temp), "BARE_ITEMS": str(items), "PYTHONPATH": here}
    seen = _count(bare, temp, env)
    if seen != total:
        sys.exit(f"collect: the bare plugin yields {seen} items, ours {total}")
    samples = interleave(
        {
            "pytest --sandbox --collect-only": lambda: run_process(
                ours, cwd=temp, env=env, expect={0}
            ),
            "bare plugin (TOML, empty items)": lambda: run_process(
                bare, cwd=temp, env=env, expect={0}
            ),
        },
        rounds,
    )
    title = f"collect: {len(names)} files, {total} items, targets {TARGETS}, whole process"
    contest = Contest(title, samples)
    ratio = contest.ratio(*samples)
    contest.bars.append(Bar("collection against the bare plugin", ratio, LIMIT))
    return contest


def _output(argv: list[str], temp: Path, env: dict[str, str]) -> list[str]:
    done = subprocess.run(argv, cwd=temp, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}\nexited with status {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout.splitlines()


def _count(argv: list[str], temp: Path, env: dict[str, str]) -> int:
    return sum(1 for line in _output(argv, temp, env) if _ITEM.match(line))


def _names(argv: list[str], corpus: Path, temp: Path) -> tuple[dict[str, list[str]], int]:
    """The names of our items by file; files without items count too: both sides parse them."""
    names: dict[str, list[str]] = {str(path): [] for path in sorted(corpus.rglob("*.toml"))}
    total = 0
    for line in _output(argv, temp, dict(os.environ)):
        if found := _ITEM.match(line):
            # Outside the rootdir, node ids are relative to the folder that was named.
            names[str(corpus / found[1])].append(found[2])
            total += 1
    return names, total


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("collect",)))
