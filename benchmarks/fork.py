"""Points in time of a sandbox: fork it, with one layer below it and with twenty; list what an
installation of 6,000 files changed; take a snapshot. Beside docker's diff and commit.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian
from benchmarks.contest import PACE, Bar, Contest, interleave
from benchmarks.daemons import CLI, SDK, Daemons
from benchmarks.field import DIRECT, LAUNCHERS, Field, expect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession

    Turns = dict[str, Callable[[], float | None]]

LAYERS, FILES, SIZE = 20, 6000, 10 << 10
MARKER = "/var/tmp/marker"
ROUNDS, OTHERS, POINTS = 40, 4, 15
MOST, CHANGES_MS, SNAPSHOT_MS = 1.3, 100.0, 50.0
NEW, ONE, MANY, LARGE = (
    f"{DIRECT}: a new sandbox",
    f"{DIRECT}: fork, one layer below",
    f"{DIRECT}: fork, {LAYERS} layers below",
    f"{DIRECT}: fork of {FILES:,} files",
)
COMMIT = "docker commit, docker run --rm"


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Four contests; every candidate checks what it got."""
    with ExitStack() as stack:
        field = Field(stack, debian.of(given))
        runs = {name: field.run(name) for name in LAUNCHERS}
        scene = Scene(stack, field, runs)
        yield scene.forks(given.rounds or ROUNDS)
        daemons = Daemons(field, given)
        docker = Docker(stack, daemons, scene.archive) if CLI not in daemons.skipped else None
        rounds = given.rounds or POINTS
        yield scene.changes(rounds, docker)
        yield scene.snapshots(rounds, docker)
        if docker is not None:
            turns: Turns = {LARGE: scene.fork(scene.large), COMMIT: docker.fork}
            found = interleave(turns, given.rounds or OTHERS, pace=PACE)
            yield Contest(f"fork: of {FILES:,} files, beside docker", found)


class Scene:
    """Our sandboxes: fresh ones, one over many layers, and installed ones, by launcher."""

    def __init__(self, stack: ExitStack, field: Field, runs: dict[str, RunSession]) -> None:
        self.field, self.run = field, runs[DIRECT]
        self.archive = installation()
        self.installed: dict[str, Sandbox] = {}
        for name, run in runs.items():
            made = field.sandbox(run)
            made.system.put(io.BytesIO(self.archive), "/opt")
            self.installed[name] = made
        self.large = self.installed[DIRECT]
        self.one = field.sandbox(self.run)
        self.many = self.deep(LAYERS)
        for sandbox in (*self.installed.values(), self.one, self.many):
            sandbox.write_text(MARKER, "forked\n")
            stack.callback(sandbox.close)

    def deep(self, layers: int) -> Sandbox:
        """A sandbox over so many layers: the base, and forks of forks that each wrote a file."""
        made = self.field.sandbox(self.run)
        for number in range(1, layers):
            made.write_text(f"/var/tmp/layer-{number}", "written\n")
            made = made.fork()
        count = len([*made.run(["sh", "-c", "ls /var/tmp/layer-*"]).stdout.split()])
        expect(count == layers - 1)
        return made

    def forks(self, rounds: int) -> Contest:
        """Forks of three sandboxes beside a new one."""

        def new() -> None:
            sandbox = self.field.sandbox(self.run)
            expect(sandbox.run(["true"]).ok)
            sandbox.system.close()
            sandbox.close()

        parents = {ONE: self.one, MANY: self.many, LARGE: self.large}
        turns: Turns = {name: self.fork(parent) for name, parent in parents.items()} | {NEW: new}
        found = interleave(turns, rounds, warmup=2, pace=PACE)
        contest = Contest("fork: fork, read a file of the fork, remove the fork", found)
        contest.bar(f"fork with {LAYERS} layers below against one", MANY, ONE, MOST)
        contest.bar(f"fork of {FILES:,} files against an empty one's", LARGE, ONE, MOST)
        return contest

    def fork(self, parent: Sandbox) -> Callable[[], float]:
        """A turn; removal of the snapshot, which is the run's own, is not timed."""

        def turn() -> float:
            began = time.perf_counter()
            child = parent.fork()
            expect(child.run(["cat", MARKER]).stdout == "forked\n")
            child.system.close()
            took = time.perf_counter() - began
            child.close()
            self.run.runtime.remove_image(child.image)
            return took

        return turn

    def changes(self, rounds: int, docker: Docker | None) -> Contest:
        """What an installation changed."""

        def ours(sandbox: Sandbox) -> Callable[[], None]:
            return lambda: expect(len(sandbox.changes().added) > FILES)

        turns: Turns = {name: ours(sandbox) for name, sandbox in self.installed.items()}
        if docker is not None:
            turns |= {CLI: docker.diff, SDK: docker.sdk_diff}
        found = interleave(turns, rounds, pace=PACE)
        contest = Contest(f"fork: changes() after an installation of {FILES:,} files", found)
        median = contest.median(DIRECT) * 1e3
        contest.bars.append(Bar("changes()", median, CHANGES_MS, unit=" ms"))
        return contest

    def snapshots(self, rounds: int, docker: Docker | None) -> Contest:
        """A point to start others from; its removal is not timed."""

        def ours(sandbox: Sandbox) -> Callable[[], float]:
            def turn() -> float:
                began = time.perf_counter()
                point = sandbox.snapshot()
                took = time.perf_counter() - began
                self.run.runtime.remove_image(point.name)
                return took

            return turn

        turns: Turns = {name: ours(sandbox) for name, sandbox in self.installed.items()}
        if docker is not None:
            turns["docker commit"] = docker.commit
        found = interleave(turns, rounds, pace=PACE, every={"docker commit": 5})
        contest = Contest(f"fork: snapshot() of an installation of {FILES:,} files", found)
        median = contest.median(DIRECT) * 1e3
        contest.bars.append(Bar("snapshot()", median, SNAPSHOT_MS, unit=" ms"))
        return contest


class Docker:
    """The same installation in a container of docker's."""

    def __init__(self, stack: ExitStack, daemons: Daemons, archive: bytes) -> None:
        self.daemons, self.stack = daemons, stack
        self.held = daemons.held()
        expect(self.held.put_archive("/opt", archive))
        self.held.exec_run(["sh", "-c", f"echo forked >{MARKER}"])

    def diff(self) -> None:
        """By the command line."""
        said = self.daemons.command("docker", "diff", self.held.id)
        expect(said.count("\nA ") > FILES)

    def sdk_diff(self) -> None:
        """By the SDK."""
        found: list[Any] = self.held.diff()
        expect(sum(entry["Kind"] == 1 for entry in found) > FILES)

    def commit(self) -> float:
        """The image is removed after the clock has stopped."""
        name = f"benchmark-fork:{uuid.uuid4().hex[:12]}"
        began = time.perf_counter()
        self.daemons.command("docker", "commit", self.held.id, name)
        took = time.perf_counter() - began
        self.daemons.client.images.remove(name, force=True)
        return took

    def fork(self) -> float:
        """Commit, run, remove the container."""
        name = f"benchmark-fork:{uuid.uuid4().hex[:12]}"
        began = time.perf_counter()
        self.daemons.command("docker", "commit", self.held.id, name)
        try:
            said = self.daemons.docker_run(name, "cat", MARKER)
            took = time.perf_counter() - began
        finally:
            self.daemons.client.images.remove(name, force=True)
        expect(said == "forked\n")
        return took


def installation() -> bytes:
    """FILES files of SIZE bytes in folders of a hundred, as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(FILES):
            if number % 100 == 0:
                folder = tarfile.TarInfo(f"app/{number // 100}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            info = tarfile.TarInfo(f"app/{number // 100}/file-{number}")
            info.size = SIZE
            archive.addfile(info, io.BytesIO(os.urandom(16) * (SIZE // 16)))
    return out.getvalue()


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("fork",)))
