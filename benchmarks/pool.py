"""The `sandbox` fixture as a test sees it: set-up and tear-down of a warm one from the pool, in a
real pytest run that takes its turns beside `runc run` and `docker run`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian, turns
from benchmarks.bundles import RUNC, Trees, own_mounts
from benchmarks.contest import PACE, Bar, Contest, interleave
from benchmarks.daemons import CLI, Daemons
from benchmarks.debian import NAME
from benchmarks.field import Field, expect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

POOL = "sandbox fixture, direct, from the pool"
NO_POOL = "sandbox fixture, direct, no pool"
ON_RUNC = "sandbox fixture on runc, from the pool"
ON_DOCKER = "sandbox fixture on Docker, from the pool"
LEAST_RUNC, LEAST_DOCKER = 15.0, 80.0
ROUNDS, WARMUP = 50, 3
TEST = """\
import pytest

@pytest.mark.sandbox(image={image!r}, timeout=3600)
@pytest.mark.parametrize("n", range({tests}))
def test_it(sandbox, n):
    assert not sandbox.run(["test", "-e", "/srv/mark"]).ok
    assert sandbox.run(["touch", "/srv/mark"]).ok
"""


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """One contest; every candidate checks what it got."""
    if os.geteuid() != 0:
        sys.exit("pool: its peers need root for their mounts")
    own_mounts()
    with ExitStack() as stack:
        field = Field(stack, debian.of(given))
        rounds = given.rounds or ROUNDS
        trees, daemons = Trees(field), Daemons(field, given)
        skipped = {name: why for name, why in daemons.skipped.items() if name == CLI}
        tests = rounds + WARMUP
        ours = {
            POOL: Suite(field, stack, "pool", tests),
            NO_POOL: Suite(field, stack, "no-pool", tests, "--sandbox-pool=0"),
            ON_RUNC: Suite(field, stack, "runc", tests, "--sandbox-launcher=runc"),
        }
        if daemons.client is not None:
            options = ["--sandbox-runtime=docker"]
            ours[ON_DOCKER] = Suite(field, stack, "docker", tests, *options, image=daemons.image)
        candidates: dict[str, Callable[[], float | None]] = {
            name: suite.turn for name, suite in ours.items()
        }
        candidates |= {RUNC: trees.root(skipped)[RUNC]} if trees.runc else {}
        if CLI not in skipped:
            candidates[CLI] = lambda: expect(daemons.docker_run(daemons.image, "true") == "")
        found = interleave(candidates, rounds, warmup=WARMUP, pace=PACE)
        title = "pool: set-up and tear-down of the fixture; the peers run `true` too"
        contest = Contest(title, found, skipped=skipped)
        contest.bar(f"{RUNC} against the fixture", RUNC, POOL, LEAST_RUNC, least=True)
        contest.bar(f"{CLI} against the fixture", CLI, POOL, LEAST_DOCKER, least=True)
        for name, suite in ours.items():
            end = suite.finish()
            contest.notes.append(
                f"{name}: of {tests} sandboxes {end['taken']} came from the pool, of "
                f"{end['started']} that were started ahead"
            )
            if name == POOL:
                share = min(end["taken"] / rounds, 1.0)
                contest.bars.append(Bar("from the pool", share, 0.9, unit="", least=True))
        yield contest


class Suite:
    """A pytest run whose tests take turns: each starts when it is told to."""

    def __init__(
        self,
        field: Field,
        stack: ExitStack,
        name: str,
        tests: int,
        *options: str,
        image: str = NAME,
    ) -> None:
        folder = field.temp / f"suite-{name}"
        folder.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "test_it.py").write_text(TEST.format(image=image, tests=tests), encoding="utf-8")
        theirs, self._go = os.pipe()
        told, ours = os.pipe()
        words = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.turns"]
        words += ["-p", "no:cacheprovider", "-p", "no:randomly"]
        # The last one counts.
        words += ["--sandbox-runtime=oci", "--sandbox-launcher=direct", *options]
        root = str(Path(__file__).resolve().parents[1])
        environ = {**field.environ, turns.VARIABLE: f"{theirs} {ours}"}
        environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environ.get("PYTHONPATH")])])
        self._log = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            words,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs, ours),
        )
        stack.callback(self._end)
        os.close(theirs)
        os.close(ours)
        self._told = os.fdopen(told, encoding="ascii")

    def turn(self) -> float:
        """Let one test run to its end; the seconds of its set-up and tear-down."""
        os.write(self._go, b"go\n")
        took = self._hear()
        if "setup" not in took:
            self._fail()
        return float(took["setup"] + took["teardown"])

    def finish(self) -> dict[str, Any]:
        """What it told at its end. Every test has to have passed."""
        os.close(self._go)
        self._go = -1
        end = self._hear()
        self._process.wait()
        if end.get("status") != 0:
            self._fail()
        return end

    def _hear(self) -> dict[str, Any]:
        line = self._told.readline()
        if not line:
            self._fail()
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _fail(self) -> None:
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace")[-3000:]
        sys.exit(f"pytest did not do what is measured:\n{tail}")

    def _end(self) -> None:
        if self._go >= 0:
            os.close(self._go)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._told.close()
        self._log.close()


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("pool",)))
