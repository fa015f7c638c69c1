"""One command in a container of its own, whole: ours as a library and as a command, beside `runc
run` of the same tree with the same spec. One after the other, then sixteen at once.

`runc run` gets its root file system mounted: each of its turns is the process alone. Ours make an
upper folder, mount, start and remove it all. (Beside engines: see sandbox.)
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian
from benchmarks.bundles import Trees, own_mounts
from benchmarks.contest import Bar, Contest, interleave, run_process
from benchmarks.debian import NAME
from benchmarks.field import DIRECT, ENGINE, Field, expect
from benchmarks.pull import installed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pytest_sandbox.oci.supervisor import Supervisor

    Turns = dict[str, Callable[[], float | None]]

LIBRARY, LIBRARY_RUNC, COMMAND, RUNC = (
    f"{DIRECT}: library",
    f"{ENGINE}: library",
    "pytest-sandbox run --rm",
    "runc run, root mounted before",
)
LIMITS = {LIBRARY: 1.3, LIBRARY_RUNC: 1.3, COMMAND: 5.0}
AT_ONCE = 16
SEVERAL = 100
"""So many containers are one turn when sixteen run at once."""
ROUNDS, CROWDS = 40, 2


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Single ones, in turns; then turns of a hundred, sixteen at once."""
    if os.geteuid() != 0:
        sys.exit("containers: plain runc needs root for its mounts")
    own_mounts()
    with ExitStack() as stack:
        field = Field(stack, debian.of(given))
        turns = Candidates(stack, field).turns()
        for call in turns.values():
            call()  # what runs as long as we do is there from now on
        keepers = [field.runtime(name).supervisor for name in (DIRECT, ENGINE)]
        before = left_over(field.data, keepers)
        single = interleave(turns, given.rounds or ROUNDS, warmup=2)
        yield _judged(Contest("containers: one that runs `true`, whole", single))
        many = {name: several(call) for name, call in turns.items()}
        crowd = interleave(many, 1 if given.rounds else CROWDS, warmup=0)
        contest = Contest(f"containers: {SEVERAL} that run `true`, {AT_ONCE} at once", crowd)
        left = sorted(left_over(field.data, keepers) - before)
        contest.notes += [f"left: {line}" for line in left[:20]]
        contest.bars.append(Bar("things left behind by ours", len(left), 0, unit=""))
        yield _judged(contest)


def _judged(contest: Contest) -> Contest:
    for name, most in LIMITS.items():
        contest.bar(f"{name} against runc run", name, RUNC, most)
    return contest


def several(call: Callable[[], float | None]) -> Callable[[], None]:
    """A hundred of them, sixteen at once."""

    def run() -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(call) for _ in range(SEVERAL)]:
                done.result()

    return run


class Candidates:
    """Name -> what runs one container to its end."""

    def __init__(self, stack: ExitStack, field: Field) -> None:
        self.field = field
        self.environ = {**field.environ, "PYTHONPATH": str(installed(field.temp))}
        self.environ["PYTEST_SANDBOX_DATA"] = str(field.data)
        self.trees = Trees(field)
        self.trees.more(AT_ONCE)
        self.trees.free.get()  # the first is the tree of all others
        bundles = [self.trees.free.get() for _ in range(AT_ONCE)]
        for bundle in bundles:
            stack.enter_context(self.trees.overlay(bundle))
            self.trees.free.put(bundle)

    def turns(self) -> Turns:
        """Those that can take part."""
        found: Turns = {LIBRARY: self.library(DIRECT), LIBRARY_RUNC: self.library(ENGINE)}
        found[COMMAND] = self.command
        if self.trees.runc is not None:
            found[RUNC] = self.runc
        return found

    def library(self, candidate: str) -> Callable[[], None]:
        """In this process."""
        from pytest_sandbox.runtimes.oci.once import run_once

        runtime, image = self.field.runtime(candidate), self.field.image
        return lambda: expect(run_once(runtime, image, ["true"]) == 0)

    def command(self) -> float:
        """A process of its own."""
        script = "import sys; from pytest_sandbox.cli import main; sys.exit(main())"
        words = [sys.executable, "-c", script, "run", "--rm", NAME, "true"]
        return run_process(words, cwd=self.field.temp, env=self.environ, expect={0})

    def runc(self) -> None:
        """The process alone."""
        bundle = self.trees.free.get()
        try:
            self.trees.runc_run(bundle)
        finally:
            self.trees.free.put(bundle)


def left_over(data: Path, keepers: list[Supervisor]) -> set[str]:
    """What sandboxes of ours can leave: processes (and so their namespaces), namespaces that are
    held open, mounts, cgroups, rooms and files.
    """
    from pytest_sandbox.oci.cgroups import find_cgroups

    found, mine = set(), str(os.getpid())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            group = (process / "cgroup").read_text(errors="replace")
            parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == mine or str(data) in words or "/pytest-sandbox/ps-once-" in group:
            found.add(f"process {process.name} {words[:60]}")
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith(("net:", "mnt:", "user:", "pid:")):
                found.add(f"namespace {target}")
    rooms = tuple(f"{keeper.room}/" for keeper in keepers)
    for whose in ("1", mine, *(str(keeper.pid) for keeper in keepers)):
        for line in Path(f"/proc/{whose}/mountinfo").read_text(errors="replace").splitlines():
            place = line.split()[4]
            if str(data) in place or place.startswith(rooms):
                found.add(f"mount {place} of {whose}")
    found |= {f"cgroup {name}" for name in find_cgroups().names() if f"-once-{mine}-" in name}
    found |= {f"room {path}" for path in Path("/tmp").glob(f"pytest-sandbox-room-*-{mine}-*")}
    for name in ("sandboxes", "owners", "uses", "trash", "leases", "containers"):
        found |= {f"file {path}" for path in (data / "oci" / name).glob("*")}
    return found


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("containers",)))
