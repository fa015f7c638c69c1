"""Nothing is left behind, however a run ends; and nothing of anybody else's is touched."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.leftovers import alive, descendants, files_of_runs, rooms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.acceptance.leftovers import Leftovers

SLOW = """\
[[steps]]
action = "run_command"
command = "echo begun > /srv/begun; sleep 300"

[verify]
command = "true"
"""

GOOD = """\
[[steps]]
action = "run_command"
command = "echo fine > /srv/fine"

[verify]
command = "cat /srv/fine"
"""


@pytest.fixture
def start(
    pytester: pytest.Pytester, recipe: object, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `pytest --sandbox` in the background; its notes of runs go to a cache of its own."""
    recipe("slow-a", SLOW)
    recipe("slow-b", SLOW)
    recipe("zz-good", GOOD)
    processes: list[subprocess.Popen[bytes]] = []

    def run(*args: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "pytest", "--sandbox", "--sandbox-target",
                "linux/amd64/debian", "-p", "no:cacheprovider", *args,
            ],
            cwd=pytester.path,
            env={**os.environ, "PYTEST_SANDBOX_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_signals_leave_nothing(
    number: signal.Signals,
    workers: tuple[str, ...],
    leftovers: Leftovers,
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    notes = tmp_path / "cache" / "runs"

    def running() -> dict[str, int]:
        return leftovers.running({path.stem for path in notes.glob("*.json")})

    def of(process: subprocess.Popen[bytes]) -> set[str]:
        """The sandboxes of one run."""
        below = descendants(process.pid)
        return {name for name, owner in running().items() if owner in below}

    first = start("-k", "slow", *workers)
    second = start("-k", "slow", *workers)
    with leftovers.foreign() as foreign:
        # A worker's each at least; the one for the next item may be there, too.
        least = 2 if workers else 1
        wait_for(lambda: all(len(of(run)) >= least for run in (first, second)), 60, "starting")
        runs = {path.stem for path in notes.glob("*.json")}
        assert len(runs) == 2
        processes = descendants(first.pid)
        killed, spared = of(first), of(second)
        first.send_signal(number)
        first.wait(timeout=60)
        # The other run's sandboxes are still there, and the dead run's vanish by themselves.
        wait_for(lambda: not leftovers.present(killed), 20, "the end of the first run's sandboxes")
        wait_for(lambda: not alive(processes), 20, f"the end of {alive(processes)}")
        assert spared <= of(second)
        assert second.poll() is None
        processes |= descendants(second.pid)
        os.killpg(second.pid, number)  # as Ctrl-C at a terminal: all of it gets the signal
        second.wait(timeout=60)
        third = start("-k", "good", *workers)
        assert third.wait(timeout=120) == 0
        wait_for(lambda: not leftovers.of_runs(runs), 20, "cleaning")
        wait_for(lambda: not alive(processes), 20, f"the end of {alive(processes)}")
        assert files_of_runs(runs) == []
        assert rooms_of(processes) == []
        assert list(notes.glob("*.json")) == []
        assert leftovers.present([foreign]) == [foreign]


def test_an_interrupted_build_leaves_nothing_and_the_next_run_builds(
    leftovers: Leftovers,
    recipe: Callable[[str, str], Path],
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    # A need that nobody else has, so that what is torn is of this test.
    group = f"g{secrets.token_hex(4)}"
    recipe(
        "builds",
        "[[steps]]\naction = 'apt_install'\npackages = ['hello', 'cowsay', 'sl']\n"
        f"[[steps]]\naction = 'group_add'\ngroup = '{group}'\n\n"
        "[verify]\ncommand = 'hello'\n",
    )
    before = leftovers.torn()
    process = start("-k", "builds")
    wait_for(lambda: leftovers.builds("cowsay", process.pid), 90, "the build")
    processes = descendants(process.pid)
    under_way = leftovers.torn() - before
    process.kill()
    process.wait()
    wait_for(lambda: not alive(processes), 20, "the end of the build's processes")
    wait_for(lambda: not leftovers.builds("cowsay", process.pid), 20, "the end of the build")
    assert start("-k", "builds").wait(timeout=180) == 0
    assert leftovers.torn() & under_way <= before
