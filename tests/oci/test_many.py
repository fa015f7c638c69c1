"""Sandboxes of a library user: many at once, and killed ones; nothing hangs, clashes or stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.cgroups import find_cgroups
from pytest_sandbox.runtimes.oci.once import run_once
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from tests.oci.builds.conftest import TARGET, busybox, remove, tiny
from tests.oci.supervisor.conftest import alive, mounted, soon

__all__ = ["busybox"]
COUNT, AT_ONCE = 300, 16
FOLDERS = ("sandboxes", "owners", "uses", "trash", "leases", "tmp")


@pytest.fixture(scope="module", params=["runc", "direct"])
def runtime(request, busybox, tmp_path_factory):
    """The runtime with a store of its own, and `base:1` in it."""
    place = tmp_path_factory.mktemp("many")
    found = OciRuntime(folder=place / "oci", launcher=request.param)
    try:
        found.info()
    except SandboxError as missing:
        pytest.skip(str(missing))
    found.load_rootfs(tiny(busybox), "base:1", TARGET, {})
    yield found
    remove(found, place, "oci")


def left(runtime):
    """What sandboxes of this store have left: files, cgroups, and mounts in the supervisor's room.

    `children` are the supervisor's: workers, which wait a while for more.
    """
    root, keeper = runtime.store.root, runtime.supervisor
    found = [str(p) for name in FOLDERS for p in (root / name).glob("*")]
    whose = re.compile(rf"ps-once-{os.getpid()}-.*|ps-blank-[0-9]+-{keeper.pid}-.*")
    found += [name for name in find_cgroups().names() if whose.fullmatch(name)]
    room = Path(f"/proc/{keeper.pid}/root{keeper.room}")
    found += [str(path) for path in room.iterdir() if path.name != "states"]
    found += [str(path) for path in (room / "states").glob("*")]
    lines = Path(f"/proc/{keeper.pid}/mountinfo").read_text().splitlines()
    found += [line for line in lines if f" {keeper.room}/" in line]
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
    for pid in children:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found += [name] if name != "sandbox-keeper" else []
    return found


def test_three_hundred_short_ones_sixteen_at_once(runtime):
    image = runtime.image("base:1")
    descriptors = len([*Path("/proc/self/fd").iterdir()])

    def one(number):
        reader, writer = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            script = f"echo {number} $(id -u); test -e /mark && exit 99; echo >/mark; exit $1"
            argv = ["sh", "-c", script, "sh", str(number % 7)]
            status = run_once(runtime, image, argv, stdio=[null, writer, writer])
        finally:
            os.close(writer)
            os.close(null)
        with os.fdopen(reader, "rb") as source:
            return number, status, source.read()

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(one, range(COUNT)))
    took = time.monotonic() - began
    wrong = [one for one in results if one[1:] != (one[0] % 7, b"%d 0\n" % one[0])]
    assert wrong == []
    assert soon(lambda: left(runtime) == [], 30), left(runtime)
    assert len([*Path("/proc/self/fd").iterdir()]) <= descriptors + 1
    print(f"{COUNT} sandboxes, {AT_ONCE} at once: {took:.1f} s")


def test_statuses(runtime):
    image = runtime.image("base:1")
    for words, status in (
        (["sh", "-c", "true"], 0),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -9 $$"], 137),
    ):
        assert run_once(runtime, image, words) == status


def test_one_that_cannot_be_started_leaves_nothing(runtime):
    image = runtime.image("base:1")
    with pytest.raises(SandboxError):
        run_once(runtime, image, ["sh", "-c", "true"], user="nobody-of-that-name")
    with pytest.raises(SandboxError):
        run_once(runtime, image, ["sh", "-c", "true"], cwd="/etc/passwd")
    assert run_once(runtime, image, ["sh", "-c", "true"]) == 0
    assert soon(lambda: left(runtime) == [], 30), left(runtime)


_CLIENT = """
import json, sys, threading, time
from pathlib import Path
from pytest_sandbox.runtimes.oci.once import run_once
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
runtime = OciRuntime(folder=Path(sys.argv[1]), launcher=sys.argv[2])
image = runtime.image("base:1")
runtime.supervisor.start()
for _ in range(4):
    threading.Thread(
        target=run_once, args=(runtime, image, ["sleep", "1000"]), daemon=True).start()
    time.sleep(float(sys.argv[3]) / 4)
keeper = runtime.supervisor
print(json.dumps([keeper.pid, keeper.room]), flush=True)
sys.stdin.read()
"""


def processes_below(pid):
    """Every process below one, itself included."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*"):
            try:
                todo += map(int, (task / "children").read_text().split())
            except OSError:
                continue
    return found


# Running ones, and such that are being started.
@pytest.mark.parametrize("seconds", [2.0, 0.12, 0.05])
@pytest.mark.parametrize("whom", ["client", "supervisor"])
def test_a_kill_ends_its_sandboxes_at_once(runtime, whom, seconds):
    launcher = runtime.machine.launcher.replace("engine", "runc")
    process = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, str(runtime.store.root), launcher, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    try:
        keeper, room = json.loads(process.stdout.readline())
        below = processes_below(keeper)
        os.kill(process.pid if whom == "client" else keeper, signal.SIGKILL)
        began = time.monotonic()
        if whom == "supervisor" and seconds < 1:
            # One that is created and not started has no init yet: the next run ends it.
            assert soon(lambda: not alive(keeper))
            runtime.reap(lambda owner, _created: owner.pid == process.pid)
        assert soon(lambda: not any(map(alive, below)), 15)
        took = time.monotonic() - began
        assert soon(lambda: not mounted(room), 15)
        print(f"{len(below)} processes ended in {took * 1000:.0f} ms")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def leftover():
        whose = re.compile(rf"ps-once-{process.pid}-.*|ps-blank-[0-9]+-{keeper}-.*")
        groups = [n for n in find_cgroups().names() if whose.fullmatch(n)]
        return [*groups, *left(runtime), *([room] if Path(room).exists() else [])]

    def cleared():
        """A killed supervisor's engine may be at work yet, and its zombie not reaped."""
        runtime.reap(lambda owner, _created: owner.pid == process.pid)
        return not leftover()

    assert soon(cleared, 30), leftover()
