"""What the processes of one run know of each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.fake import FakeRuntime
from pytest_sandbox.runtimes.owner import FOREIGN_AGE, current_owner
from pytest_sandbox.runtimes.runs import enter_run, leave_run
from pytest_sandbox.targets import Target

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.base import Owner

SPEC = SandboxSpec("debian:trixie", Target("linux", "amd64", "debian"), Limits())


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runs' files."""
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path))
    return tmp_path / "runs"


def dead_owner(run: str) -> Owner:
    """A process that has ended, and been waited for."""
    owner = current_owner(run)
    return replace(owner, pid=_ended(), started=owner.started + 1)


def _ended() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def note(runs: Path, owner: Owner, created: float) -> Path:
    runs.mkdir(exist_ok=True)
    path = runs / f"{owner.run}.json"
    path.write_text(json.dumps({**asdict(owner), "created": created}))
    return path


def test_the_first_process_of_a_run_reaps_and_the_others_do_not(runs: Path) -> None:
    engine = FakeRuntime()
    left = engine.start(SPEC, dead_owner("before"))
    other = engine.start(SPEC, current_owner("beside"))
    enter_run(engine, "now")
    assert not left.alive()
    assert other.alive()
    assert [path.name for path in runs.iterdir()] == ["now.json"]
    late = engine.start(SPEC, dead_owner("before"))
    enter_run(engine, "now")
    assert late.alive()


def test_leaving_tells_whether_an_engine_was_used(runs: Path) -> None:
    assert not leave_run("now")
    enter_run(FakeRuntime(), "now")
    assert leave_run("now")
    assert not leave_run("now")
    assert list(runs.iterdir()) == []


def test_dead_runs_are_forgotten_and_living_and_foreign_ones_are_not(runs: Path) -> None:
    now = time.time()
    dead = note(runs, dead_owner("dead"), now)
    living = note(runs, current_owner("living"), now)
    foreign = note(runs, replace(current_owner("foreign"), boot="another"), now)
    old = note(runs, replace(current_owner("old"), namespace="1"), now - FOREIGN_AGE - 60)
    for name, text in (("cut", '{"run": "x'), ("other", "[]"), ("short", '{"created": 1}')):
        (runs / f"{name}.json").write_text(text)
    enter_run(FakeRuntime(), "now")
    assert not dead.exists()
    assert not old.exists()
    assert living.exists()
    assert foreign.exists()
    assert (runs / "now.json").exists()


def test_a_worker_ends_with_its_parent() -> None:
    worker = (
        "import os, time\n"
        "from pytest_sandbox.runtimes.runs import end_with_parent\n"
        "end_with_parent()\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    parent = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {worker!r}]).wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        assert _lives(pid)
        os.kill(started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
