"""A command in a sandbox that runs already, beside a process of the host (the limit), `runc exec`
and the engines; and a fork bomb in a command: how long it takes until it is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian
from benchmarks.bundles import Trees, own_mounts, run
from benchmarks.contest import PACE, Bar, Contest, interleave
from benchmarks.daemons import SDK, Daemons
from benchmarks.field import DIRECT, LAUNCHERS, Field, expect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pytest_sandbox.sandbox import Sandbox

    Turns = dict[str, Callable[[], float | None]]

SPAWN, SPAWN_READ = "posix_spawn on the host (the limit)", "the same, its output read"
RUNC_EXEC, NSENTER = "runc exec", "nsenter"
ROUNDS, OTHERS, BOMBS, BLOCK = 50, 10, 8, 10
MOST, LEAST_RUNC, LEAST_SDK = 1.5, 25.0, 50.0
BOMB = r"""
my $made = 1;
for (1 .. 254) {
    my $child = fork;
    die "fork: $!" unless defined $child;
    unless ($child) { select undef, undef, undef, 1; fork while 1 }
    $made++;
}
$| = 1; print "$made\n"; fork while 1;
"""
"""254 children that wait a second, so that all can be made; then every one forks for ever."""
SIZE, DEADLINE, GONE_MS = 255, 2.0, 100.0
COUNT = "grep -lx perl /proc/[0-9]*/comm 2>/dev/null | wc -l"


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Four contests; every candidate checks what it got."""
    if os.geteuid() != 0:
        sys.exit("exec: its peers need root for their mounts")
    own_mounts()
    with ExitStack() as stack:
        field = Field(stack, debian.of(given))
        runs = {name: field.run(name) for name in LAUNCHERS}
        ours = {name: field.sandbox(run) for name, run in runs.items()}
        for sandbox in ours.values():
            stack.callback(sandbox.close)
        yield from commands(field, ours, given.rounds or ROUNDS)
        yield bombs(field.sandbox(runs[DIRECT], pids=SIZE), given.rounds or BOMBS)
        daemons = Daemons(field, given)
        turns: Turns = {DIRECT: _true(ours[DIRECT])}
        turns = {name: _block(one) for name, one in (turns | daemons.commands()).items()}
        found = interleave(turns, given.rounds or OTHERS)
        title = f"exec: `true`, beside engines, {BLOCK} in a row"
        contest = Contest(title, found, skipped=daemons.skipped)
        contest.bar(f"{SDK}, exec_run against ours", SDK, DIRECT, LEAST_SDK, least=True)
        yield contest


def commands(field: Field, ours: dict[str, Sandbox], rounds: int) -> Iterator[Contest]:
    """Ours beside what needs no engine: in a row, and each after a pause."""
    skipped: dict[str, str] = {}
    turns: Turns = {name: _true(sandbox) for name, sandbox in ours.items()}
    turns |= {SPAWN: spawn, SPAWN_READ: spawn_read}
    with ExitStack() as stack:
        trees = Trees(field)
        if trees.runc is None:
            skipped |= dict.fromkeys((RUNC_EXEC, NSENTER), "no runc on PATH")
        else:
            name = stack.enter_context(trees.held())
            words = [*trees.runc_words("exec"), name, "true"]
            turns[RUNC_EXEC] = lambda: run(words)
            state = subprocess.check_output([*trees.runc_words("state"), name])
            pid = json.loads(state)["pid"]
            if shutil.which("nsenter"):
                enter = ["nsenter", "--target", str(pid), "--all", "true"]
                turns[NSENTER] = lambda: run(enter)
        blocks = {name: _block(one) for name, one in turns.items()}
        found = interleave(blocks, rounds, warmup=2)
        paced = interleave(turns, rounds, warmup=3, pace=PACE)
    title = f'exec: sandbox.run(["true"]), one of {BLOCK} in a row'
    contest = Contest(title, found, skipped=skipped)
    contest.bar("ours against posix_spawn", DIRECT, SPAWN, MOST)
    contest.bar("runc exec against ours", RUNC_EXEC, DIRECT, LEAST_RUNC, least=True)
    yield contest
    title = 'exec: sandbox.run(["true"]), after a pause of 30 ms'
    yield Contest(title, paced, skipped=skipped)


def _block(one: Callable[[], float | None]) -> Callable[[], float]:
    """So many in a row: the seconds of one."""

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(BLOCK):
            one()
        return (time.perf_counter() - began) / BLOCK

    return turn


def _true(sandbox: Sandbox) -> Callable[[], None]:
    return lambda: expect(sandbox.run(["true"]).ok)


def spawn() -> None:
    """A process of the host, and its end."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    expect(os.waitpid(pid, 0)[1] == 0)


def spawn_read() -> None:
    """The same, with stdout and stderr read to their ends: what a sandbox's command gives, too."""
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    actions = [(os.POSIX_SPAWN_DUP2, write, 1 + at) for at, (_, write) in enumerate(pipes)]
    pid = os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions)
    for read, write in pipes:
        os.close(write)
        expect(os.read(read, 1) == b"")
        os.close(read)
    expect(os.waitpid(pid, 0)[1] == 0)


def bombs(sandbox: Sandbox, rounds: int) -> Contest:
    """From the command's deadline until nothing of the bomb is left and the next command has run
    in the same sandbox. Peers have no such call: they end whole containers.
    """
    from pytest_sandbox.errors import SandboxError

    worst = float("nan")
    title = f"exec: a bomb of {SIZE} processes in a command, from its deadline to the next command"
    try:
        contest = Contest(title, interleave({DIRECT: _bomb(sandbox)}, rounds))
        worst = max(contest.samples[DIRECT]) * 1e3
    except (SandboxError, BombFailed) as lost:
        contest = Contest(title, {}, notes=[f"{DIRECT}: {lost}"])
    finally:
        sandbox.close()
    contest.bars.append(Bar("the slowest bomb is gone", worst, GONE_MS, unit=" ms"))
    return contest


class BombFailed(Exception):
    """A bomb that was none, or that is still there."""


def _bomb(sandbox: Sandbox) -> Callable[[], float]:
    from pytest_sandbox.errors import SandboxTimeout

    def turn() -> float:
        began = time.perf_counter()
        said = ""
        try:
            sandbox.run(["perl", "-e", BOMB], timeout=DEADLINE)
        except SandboxTimeout as ended:
            said = ended.result.stdout
        left = sandbox.run(["sh", "-c", COUNT]).stdout.strip()
        took = time.perf_counter() - began - DEADLINE
        if said.strip() != str(SIZE) or left != "0":
            msg = f"{said.strip() or 'no'} processes of the bomb began, {left} are left"
            raise BombFailed(msg)
        return took

    return turn


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("exec",)))
