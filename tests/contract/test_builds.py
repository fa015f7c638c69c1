"""Image builds: whole and tagged, or nothing is left; whose fault a failure is."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import Blame, BuildFailed
from pytest_sandbox.images.name import HASH_LABEL
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from tests.contract.conftest import RUN, RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.runtimes.base import Runtime, System
    from pytest_sandbox.targets import Target


# Neither how commands run nor a pool matters to a build.
BUILDERS = [name for name in RUNTIMES if not name.endswith(("-exec", "-ahead"))]
pytestmark = pytest.mark.parametrize("runtime", BUILDERS, indirect=True, scope="session")


@pytest.fixture
def request_for(image: str, target: Target) -> Callable[..., BuildRequest]:
    def make(*commands: str, **values: object) -> BuildRequest:
        digest = secrets.token_hex(32)
        lines = [f"FROM {image}", f'LABEL {HASH_LABEL}="{digest}"', *commands]
        text = "\n".join(lines) + "\n"
        files = {"Dockerfile": text.encode(), **values.pop("files", {})}  # type: ignore[dict-item]
        values = {"network": "none", **values}
        name = f"tsuku/sandbox-test:{digest[:16]}"
        return BuildRequest(name, target, text, files, **values)  # type: ignore[arg-type]

    return make


def hash_of(request: BuildRequest) -> str:
    return request.dockerfile.partition(HASH_LABEL + '="')[2][:64]


@pytest.fixture
def left(runtime: Runtime) -> Callable[..., list[str]]:
    """What a build (of the process `pid`) has left: containers and images with its hash, or what is
    new in the store.
    """

    def look(request: BuildRequest, pid: int = os.getpid()) -> list[str]:
        if isinstance(runtime, DockerRuntime):
            return left_on_engine(runtime, request)
        return sorted(set(parts_of_builds(runtime, pid)) - before)

    before = set(parts_of_builds(runtime, 0)) if isinstance(runtime, OciRuntime) else set()
    return look


def left_on_engine(runtime: DockerRuntime, request: BuildRequest) -> list[str]:
    filters = {"label": [f"{HASH_LABEL}={hash_of(request)}"]}
    client = runtime.client
    found = client.containers(all=True, filters=filters) + client.images(filters=filters, all=True)
    return [entry["Id"] for entry in found]


def parts_of_builds(runtime: OciRuntime, pid: int) -> list[str]:
    """Work, sandboxes of builds and their cgroups, and layers that belong to no image."""
    store = runtime.store
    others = leases_of_others(store)
    found = [
        str(path)
        for name in ("tmp", "leases")
        for path in (store.root / name).iterdir()
        if path.name not in others
    ]
    found += [str(path) for path in (store.root / "trash").glob("work.*")]
    found += [str(path) for path in (store.root / "owners").glob(f"ps-build-{pid}-*")]
    groups = runtime.machine.access.cgroups.names()
    found += [name for name in groups if name.startswith(f"ps-build-{pid}-")]
    used = {key for image in store.images() for key in image.keys}
    used |= {word for text in others.values() for word in text.split()}
    # Layers of snapshots are other tests': a build makes none.
    made = [key for key in store.layers.all() if not key.startswith("snap-")]
    return [*found, *(key for key in made if key not in used)]


def leases_of_others(store: Store) -> dict[str, str]:
    """Work that other living processes (of the same tests) are at: name -> what it protects."""
    holders = {}
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, *_, pid, place, _, _ = line.split()
        if kind == "FLOCK":
            holders[int(place.rpartition(":")[2])] = int(pid)
    found = {}
    for lease in (store.root / "leases").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if holders.get(lease.stat().st_ino, os.getpid()) != os.getpid():
                found[lease.name] = lease.read_text()
    return found


def test_build(
    runtime: Runtime, request_for: Callable[..., BuildRequest], start: Callable[..., System]
):
    said: list[str] = []
    request = request_for(
        "COPY folder/in /opt/in",
        "ARG WHO",
        'RUN echo "hello $WHO $(ulimit -n)" >/opt/out',
        files={"folder/in": b"\x00context"},
        labels={"one": "two words"},
        build_args={"WHO": "it's me"},
        limits=Limits(nofile=1000),
    )
    info = runtime.build(request, said.append)
    try:
        assert info.name == request.name
        assert info.labels["one"] == "two words"
        assert info.arch == request.target.arch
        assert abs(info.created - time.time()) < 60
        assert any("COPY folder/in" in line for line in said)
        system = start(image=info.name)
        assert system.run(["cat", "/opt/in"]).stdout_bytes == b"\x00context"
        assert system.run(["cat", "/opt/out"]).stdout == "hello it's me 1000\n"
        assert info.name in {found.name for found in runtime.images()}
        system.close()
    finally:
        runtime.remove_image(request.name)
    assert runtime.find_image(request.name) is None


def test_a_failed_build_leaves_nothing(
    runtime: Runtime,
    request_for: Callable[..., BuildRequest],
    left: Callable[..., list[str]],
):
    request = request_for("RUN echo one >/one", "RUN { seq 1 30; echo to-stderr; } >&2; exit 42")
    with pytest.raises(BuildFailed) as caught:
        runtime.build(request, lambda _line: None)
    error = caught.value
    assert error.returncode == 42
    assert "exit 42" in error.command
    assert error.blame is Blame.RECIPE
    assert error.details.splitlines()[-2:] == ["30", "to-stderr"]
    assert len(error.details.splitlines()) == 20
    assert left(request) == []


def test_blame_is_read_from_the_output(runtime: Runtime, request_for: Callable[..., BuildRequest]):
    request = request_for("RUN echo \"Temporary failure resolving 'mirror.invalid'\" >&2; exit 100")
    with pytest.raises(BuildFailed) as caught:
        runtime.build(request, lambda _line: None)
    assert caught.value.blame is Blame.NETWORK
    assert "mirror.invalid" in caught.value.what


def test_a_build_that_takes_too_long(
    runtime: Runtime,
    request_for: Callable[..., BuildRequest],
    left: Callable[..., list[str]],
):
    request = request_for("RUN echo begun; sleep 60", timeout=2.0)
    began = time.monotonic()
    with pytest.raises(BuildFailed) as caught:
        runtime.build(request, lambda _line: None)
    assert time.monotonic() - began < 15
    assert caught.value.blame is Blame.TIMEOUT
    assert "begun" in caught.value.details
    assert left(request) == []


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_build_leaves_nothing(
    runtime: Runtime,
    request_for: Callable[..., BuildRequest],
    left: Callable[..., list[str]],
):
    request = request_for("RUN echo one >/one", "RUN sleep 60")
    begun = threading.Event()

    def say(line: str) -> None:
        if "sleep 60" in line:
            begun.set()

    def interrupt() -> None:
        begun.wait(30)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        runtime.build(request, say)
    thread.join()
    assert left(request) == []


def test_memory_of_a_build(
    runtime: Runtime,
    request_for: Callable[..., BuildRequest],
    left: Callable[..., list[str]],
):
    request = request_for(
        "RUN dd if=/dev/zero of=/dev/null bs=400M count=1", limits=Limits(memory=64 << 20)
    )
    with pytest.raises(BuildFailed) as caught:
        runtime.build(request, lambda _line: None)
    assert caught.value.blame is Blame.LIMIT
    assert left(request) == []


CHILD = """
import sys
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.locks import image_lock
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.targets import Target
text = sys.stdin.read()
request = BuildRequest("tsuku/sandbox-test:child", Target.parse(sys.argv[1]), text,
                       {"Dockerfile": text.encode()}, network="none")
kinds = {"docker": DockerRuntime, "oci": lambda: OciRuntime(launcher=sys.argv[4])}
runtime = kinds[sys.argv[3]]()
with image_lock(sys.argv[2]):
    runtime.build(request, lambda line: print(line, flush=True))
"""


def test_a_build_whose_process_is_killed_is_reaped(
    runtime: Runtime,
    request_for: Callable[..., BuildRequest],
    left: Callable[..., list[str]],
):
    request = request_for("RUN echo one >/one", "RUN sleep 60")
    words = [str(request.target), hash_of(request), runtime.name]
    if isinstance(runtime, OciRuntime):
        words.append(runtime.machine.launcher.replace("engine", "runc"))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(request.dockerfile)
    child.stdin.close()
    for line in child.stdout:
        if "sleep 60" in line:
            break
    time.sleep(0.5)
    held = left(request, child.pid)
    runtime.reap(lambda _owner, _created: False)
    kept = left(request, child.pid)
    child.kill()
    child.wait()
    child.stdout.close()
    assert set(held) <= set(kept), "a build that is under way was touched"
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and left(request, child.pid):
        runtime.reap(lambda owner, _created: owner.run == RUN + "-nobody")
        time.sleep(0.2)
    assert left(request, child.pid) == []
