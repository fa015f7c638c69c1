"""What the installed plugin costs a run that does not use it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import Bar, Contest, environment, interleave, run_process

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

LIMIT_MS = 15.0
HEAVY = ("docker", "httpx", "requests", "urllib3", "msgspec", "filelock", "rich", "cryptography")
"""What no run may import that has neither --sandbox nor a sandbox fixture."""
_PROBE = """
import json, sys
import pytest
status = pytest.main(sys.argv[1:])
print("MODULES", json.dumps([int(status), sorted({name.split(".")[0] for name in sys.modules})]))
"""


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """One contest: whole processes of pytest on one passing test."""
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as temp:
        yield _contest(Path(temp), given.rounds or 20)


def _contest(temp: Path, rounds: int) -> Contest:
    (temp / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (temp / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    words = ["-p", "no:cacheprovider", "-q", "test_nothing.py"]
    argv = [sys.executable, "-m", "pytest", *words]
    env = environment(temp)
    ours = ["-p", "no:sandbox"]
    brought = brought_plugins()
    theirs = [word for name in brought for word in ("-p", f"no:{name}")]

    def run(*further: str) -> float:
        return run_process([*argv, *further], cwd=temp, env=env, expect={0})

    names = "pytest with the plugin", "pytest -p no:sandbox", "and without what it brings"
    turns = {names[0]: run, names[1]: lambda: run(*ours)}
    if brought:
        turns[names[2]] = lambda: run(*ours, *theirs)
    samples = interleave(turns, rounds, warmup=2)
    contest = Contest("startup: pytest without --sandbox, one empty test, whole process", samples)
    slower = contest.slower(*names[:2]) * 1e3
    contest.bars.append(Bar("slower by (median of the rounds)", slower, LIMIT_MS, unit=" ms"))
    listed = ", ".join(brought) or "none"
    contest.notes.append(f"pytest plugins of libraries that it depends on: {listed}")
    if brought:
        also = contest.slower(names[1], names[2]) * 1e3
        contest.notes.append(f"they take {also:.1f} ms more")
    loaded = _modules(words, temp, env)
    if "pytest_sandbox" not in loaded:
        sys.exit("startup: the plugin is not installed in this environment")
    heavy = [name for name in HEAVY if name in loaded]
    contest.notes.append(f"imported of {', '.join(HEAVY)}: {', '.join(heavy) or 'none'}")
    contest.bars.append(Bar("heavy libraries imported", len(heavy), 0, unit=""))
    return contest


def brought_plugins() -> list[str]:
    """The pytest plugins of libraries that pytest-sandbox depends on: they come with it, and pytest
    loads them whether or not anybody uses them.
    """
    found, todo = {"pytest", "pytest-sandbox"}, ["pytest-sandbox"]
    while todo:
        for line in metadata.requires(todo.pop()) or ():
            name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")
            if name in found or "extra ==" in line:
                continue
            with suppress(metadata.PackageNotFoundError):
                metadata.distribution(name)
                found.add(name)
                todo.append(name)
    found -= {"pytest", "pytest-sandbox"}
    return sorted(
        entry.name
        for entry in metadata.entry_points(group="pytest11")
        if entry.dist is not None and entry.dist.name.lower().replace("_", "-") in found
    )


def _modules(words: list[str], temp: Path, env: dict[str, str]) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words],
        cwd=temp,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES "))
    status, names = json.loads(line.removeprefix("MODULES "))
    if status:
        sys.exit(f"startup: pytest exited with status {status}:\n{done.stdout}")
    return set(names)


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("startup",)))
