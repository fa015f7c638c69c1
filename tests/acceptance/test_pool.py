"""Sandboxes that are started ahead: clean, taken once, and gone however a run ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.leftovers import alive, descendants, files_of_runs, on, rooms_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.base import Runtime
    from tests.acceptance.leftovers import Leftovers

PROBE = """
import time
import pytest
from pytest_sandbox.state import STATE

def pool(request):
    return request.config.stash[STATE].session.systems.pool

def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def warm(request):
    '''Wait until the next one is ready.'''
    held = pool(request)
    until(lambda: held.started > held.taken)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, engine: Runtime) -> Callable[..., pytest.RunResult]:
    """Run a test file whose tests can look at the pool."""
    del engine
    pytester.makeini("[pytest]\n")

    def run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=PROBE + source)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)

    return run


def test_a_pooled_sandbox_is_clean_taken_once_and_its_clock_starts_with_the_test(
    suite: Callable[..., pytest.RunResult],
) -> None:
    result = suite(
        """
seen = set()

@pytest.mark.sandbox(timeout=3, env={"WORD": "as asked"}, memory="300m", tmpfs="/scratch")
@pytest.mark.parametrize("n", range(5))
def test_it(sandbox, request, n):
    assert sandbox.id not in seen
    seen.add(sandbox.id)
    assert not sandbox.changes()
    assert sandbox.run(["test", "-e", "/srv/mark"]).returncode == 1
    assert sandbox.run(["printenv", "WORD"]).stdout == "as asked\\n"
    assert sandbox.run(["sh", "-c", "touch /srv/mark /scratch/mark; sleep 60 & echo $!"]).ok
    assert len(sandbox.run(["ls", "/scratch"]).stdout.split()) == 1
    assert sandbox.system.spec.limits.timeout == 3
    if n == 1:
        warm(request)
        time.sleep(3.2)  # longer than a sandbox may live
    elif n < 4:
        warm(request)
    if n == 4:
        assert pool(request).taken == 4
        assert pool(request).started == 4  # none that no test could take

def test_the_clock_strikes(sandbox_factory, request):
    from pytest_sandbox import SandboxGone, SandboxTimeout
    for _ in range(3):
        sandbox = sandbox_factory(timeout=1)
    warm(request)
    time.sleep(1.2)
    sandbox = sandbox_factory(timeout=1)
    with pytest.raises(SandboxTimeout, match="after 1 s, its wall clock"):
        sandbox.run(["sleep", "60"])
    with pytest.raises(SandboxGone):
        sandbox.run(["true"])
        """
    )
    result.assert_outcomes(passed=6)


@on["oci"]
def test_one_that_was_killed_while_it_waited_is_not_given_to_a_test(
    suite: Callable[..., pytest.RunResult],
) -> None:
    suite(
        """
KILLED = set()

@pytest.mark.parametrize("n", range(6))
def test_it(sandbox, request, n):
    assert sandbox.run(["echo", "lives"]).stdout == "lives\\n"
    assert sandbox.id not in KILLED
    if n < 5:
        warm(request)
        for kind in pool(request)._kinds.values():
            for system in list(kind.ready):
                KILLED.add(system.id)
                system.engine.kill()
                until(lambda: not system.alive())
    else:
        assert KILLED
        """
    ).assert_outcomes(passed=6)


@on["oci"]
def test_a_test_that_is_alone_starts_one_and_zero_starts_none_ahead(
    suite: Callable[..., pytest.RunResult],
) -> None:
    suite(
        """
def test_it(sandbox, request, sandbox_runtime):
    assert sandbox.run(["true"]).ok
    time.sleep(0.2)
    assert pool(request).started == 0
    assert len(sandbox_runtime._systems) == 1
        """
    ).assert_outcomes(passed=1)
    suite(
        """
@pytest.mark.parametrize("n", range(3))
def test_it(sandbox, request, sandbox_runtime, n):
    assert pool(request) is None
        """,
        "--sandbox-pool=0",
    ).assert_outcomes(passed=3)


@on["oci"]
def test_forks_of_an_installation_come_from_the_pool_and_a_lost_one_is_made_again(
    suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    recipe = f"""\
[metadata]
name = "note"

[[steps]]
action = "run_command"
command = "echo {os.getpid()} {time.time_ns()} > /srv/note"

[verify]
command = "true"
"""
    pytester.mkdir("recipes").joinpath("note.toml").write_text(recipe)
    source = """
@pytest.mark.parametrize("n", range(5))
def test_it(installed, request, n, sandbox_runtime):
    box = installed("note")
    assert box.run(["test", "-s", "/srv/note"]).ok
    assert not box.changes()
    box.run(["rm", "/srv/note"], check=True)
    print("snapshot", box.image, n)
    if n in (1, 2):
        warm(request)
    if n == 3:
        assert pool(request).taken == 2
        sandbox_runtime.remove_image(box.image)
    """
    first = suite(source, "-s")
    first.assert_outcomes(passed=5)
    again = suite(source, "-s", "-n0")
    again.assert_outcomes(passed=5)
    said = (first.stdout.str() + first.stderr.str(), again.stdout.str() + again.stderr.str())
    # By the first test, and after the snapshot was taken away; the next run finds it.
    assert [text.count("installing note") for text in said] == [2, 1]
    names = {name for text in said for name in re.findall(r"snapshot (\S+)", text)}
    assert len(names) == 1
    rebuilt = suite(source.replace("n == 3", "n == 9"), "-s", "--sandbox-rebuild")
    rebuilt.assert_outcomes(passed=5)
    assert (rebuilt.stdout.str() + rebuilt.stderr.str()).count("installing note") == 1


SLEEPY = """
RAN = []

@pytest.mark.parametrize("n", range(8))
def test_it(sandbox, request, n):
    sandbox.run(["true"])
    RAN.append(n)
    if len(RAN) == 2:  # of this worker, whichever tests it is given
        warm(request)
        open("ready-%s" % __import__("os").getpid(), "w").close()
        time.sleep(300)
"""


@on["oci"]
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_waiting_sandboxes_go_with_the_run(
    number: signal.Signals,
    workers: tuple[str, ...],
    leftovers: Leftovers,
    pytester: pytest.Pytester,
    tmp_path: Path,
) -> None:
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(test_it=PROBE + SLEEPY)
    notes = tmp_path / "cache" / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers],
        cwd=pytester.path,
        env={**os.environ, "PYTEST_SANDBOX_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: len(list(pytester.path.glob("ready-*"))) == (2 if workers else 1), 90)
        runs = {path.stem for path in notes.glob("*.json")}
        least = 2 if workers else 1
        until(lambda: len(leftovers.running(runs)) > least, 20)
        there = list(leftovers.running(runs))
        processes = descendants(process.pid)
        process.send_signal(number)
        process.wait(timeout=60)
        until(lambda: not leftovers.present(there), 20)
        until(lambda: not alive(processes), 20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert rooms_of(processes) == [] or number == signal.SIGKILL
    if number == signal.SIGINT:
        assert leftovers.of_runs(runs) == []
        assert files_of_runs(runs) == []


def until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
