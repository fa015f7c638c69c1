"""Nothing is left behind, however a run ends; and nothing of anybody else's is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.runtimes.base import Runtime
    from pytest_sandbox.runtimes.docker import DockerRuntime

LABEL = "org.pytest-sandbox"

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
def client(engine: Runtime) -> object:
    from pytest_sandbox.runtimes.docker import DockerRuntime

    assert isinstance(engine, DockerRuntime)
    return engine.client


def ours(client: object, marker: str) -> dict[str, list[str]]:
    """What runs in `marker`'s folders own on the engine and in the temporary folder."""
    runs = {path.stem for path in Path(marker).glob("runs/*.json")}
    containers = [
        entry["Id"]
        for entry in client.containers(filters={"label": [f"{LABEL}=1"], "status": "running"})
        if entry["Labels"].get(f"{LABEL}.run") in runs
    ]
    return {"containers": containers, "runs": sorted(runs)}


def of_runs(client: object, runs: set[str]) -> list[str]:
    """Containers, snapshots and networks on the engine that carry one of these run ids."""
    found = []
    filters = {"label": [f"{LABEL}=1"]}
    for kind, entries in (
        ("container", client.containers(all=True, filters=filters)),
        ("image", client.images(all=True, filters=filters)),
        ("network", client.networks(filters=filters)),
    ):
        found += [
            f"{kind} {entry['Id'][:19]}"
            for entry in entries
            if (entry.get("Labels") or {}).get(f"{LABEL}.run") in runs
        ]
    return found


def files_of_runs(runs: set[str]) -> list[str]:
    found = []
    for path in Path(tempfile.gettempdir()).glob("pytest-sandbox-*"):
        try:
            owner = json.loads((path / "owner.json").read_text())
        except (OSError, ValueError):
            continue
        if owner["run"] in runs:
            found.append(str(path))
    return found


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
    client: object,
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    cache = str(tmp_path / "cache")
    first = start("-k", "slow", *workers)
    second = start("-k", "slow", *workers)
    foreign = client.create_container(
        "docker.io/library/debian:trixie-slim", ["true"], name=f"pytest-sandbox-{os.getpid()}-1"
    )["Id"]
    try:
        wait_for(
            lambda: len(ours(client, cache)["containers"]) == (4 if workers else 2), 60, "starting"
        )
        state = ours(client, cache)
        runs = set(state["runs"])
        assert len(runs) == 2
        killed = of_first(client, first, workers, state["containers"])
        first.send_signal(number)
        first.wait(timeout=60)
        # The other run's sandboxes are still there, and the dead run's vanish by themselves.
        wait_for(lambda: not alive(client, killed), 20, "the end of the first run's sandboxes")
        assert len(ours(client, cache)["containers"]) == (2 if workers else 1)
        assert second.poll() is None
        second.send_signal(number)
        second.wait(timeout=60)
        third = start("-k", "good", *workers)
        assert third.wait(timeout=120) == 0
        wait_for(lambda: not of_runs(client, runs), 20, f"cleaning: {of_runs(client, runs)}")
        assert of_runs(client, runs) == []
        assert files_of_runs(runs) == []
        assert list(Path(cache, "runs").glob("*.json")) == []
        assert client.inspect_container(foreign)["Name"].startswith("/pytest-sandbox-")
    finally:
        client.remove_container(foreign, force=True)


def alive(client: object, containers: list[str]) -> list[str]:
    left = {entry["Id"] for entry in client.containers(all=True)}
    return [container for container in containers if container in left]


def of_first(
    client: object,
    process: subprocess.Popen[bytes],
    workers: tuple[str, ...],
    containers: list[str],
) -> list[str]:
    """The containers whose owner is this process or a child of it."""
    pids = {str(process.pid)}
    if workers:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids |= set(children)
    return [
        container
        for container in containers
        if client.inspect_container(container)["Config"]["Labels"][f"{LABEL}.pid"] in pids
    ]


def test_an_interrupted_build_leaves_nothing_and_the_next_run_builds(
    client: DockerRuntime,
    recipe: Callable[[str, str], Path],
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    before = {entry["Id"] for entry in client.images(all=True, filters={"dangling": True})}
    recipe(
        "builds",
        "[[steps]]\naction = 'apt_install'\npackages = ['hello', 'cowsay', 'sl']\n\n"
        "[verify]\ncommand = 'hello'\n",
    )
    process = start("-k", "builds", "--sandbox-rebuild")

    def building() -> list[str]:
        return [
            entry["Id"]
            for entry in client.containers()
            if "apt-get" in entry["Command"]
            and "cowsay" in str(client.inspect_container(entry["Id"])["Config"]["Cmd"])
        ]

    wait_for(building, 90, "the build")
    process.kill()
    process.wait()
    wait_for(lambda: not building(), 20, "the end of the build")
    assert start("-k", "builds").wait(timeout=180) == 0
    dangling = client.images(filters={"dangling": True, "label": [f"{LABEL}.hash"]})
    assert {entry["Id"] for entry in dangling} <= before
