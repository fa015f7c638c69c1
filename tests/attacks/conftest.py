"""One table of launchers; an image that needs no network; and the outside, to be found from inside.

Docker is the engine that DOCKER_HOST (or the usual detection) names, Podman the service at
PYTEST_SANDBOX_TEST_PODMAN, else at the usual socket. Without an engine its part is skipped, with
PYTEST_SANDBOX_REQUIRE it fails. crun takes part where its own trial passes.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.detect import podman_endpoint
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.launchers.attacks import Outside
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch
from tests import ahead
from tests.attacks.interpreter import ROOT, rootfs
from tests.oci.requiring import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.runtimes.base import Runtime, System

LAUNCHERS: dict[str, Callable[[], Runtime]] = {
    "docker": DockerRuntime,
    "podman": DockerRuntime,
    "runc": lambda: OciRuntime(launcher="runc"),
    "crun": lambda: OciRuntime(launcher="crun"),
    "direct": lambda: OciRuntime(launcher="direct"),
}
"""The columns of the table in docs/security.md."""
OURS = frozenset(LAUNCHERS) - {"docker", "podman"}
PODMAN = "PYTEST_SANDBOX_TEST_PODMAN"
RUN = f"attacks{secrets.token_hex(4)}"
TARGET = Target("linux", host_arch(), "debian")
CANARY = f"canary-{secrets.token_hex(8)}"


@pytest.fixture(scope="session", params=list(LAUNCHERS))
def launcher(request: pytest.FixtureRequest) -> str:
    """The name of a launcher."""
    return str(request.param)


@pytest.fixture(scope="session")
def runtime(launcher: str) -> Iterator[Runtime]:
    """A connected runtime, whose processes have a word in their environment to be found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_SANDBOX_CANARY", CANARY)
        try:
            if launcher == "podman":
                patch.setenv("DOCKER_HOST", os.environ.get(PODMAN) or podman_endpoint(os.environ))
            found = LAUNCHERS[launcher]()
            found.info()
        except SandboxError as exc:
            if launcher == "crun":
                pytest.skip(f"its own trial fails here: {exc}")
            missing(str(exc))
        yield found
        found.sweep(RUN)
        found.close()


@pytest.fixture(scope="session")
def tar() -> bytes:
    return rootfs()


@pytest.fixture(scope="session")
def image(runtime: Runtime, tar: bytes) -> Iterator[str]:
    """The image of the interpreter, under a name of this session's own."""
    name = f"{RUN}/interpreter:1"
    runtime.load_rootfs(io.BytesIO(tar), name, TARGET, {})
    yield name
    runtime.remove_image(name)


@pytest.fixture(scope="session")
def begin(runtime: Runtime, image: str) -> Callable[..., System]:
    """Start a sandbox: keywords of Limits go there, the others into the spec."""

    def start(**values: Any) -> System:
        names = ("memory", "cpus", "pids", "timeout", "nofile", "disk", "output")
        limits = {key: values.pop(key) for key in names if key in values}
        spec = SandboxSpec(image, TARGET, Limits().override(**limits), **values)
        return ahead.start(runtime, spec, current_owner(RUN))

    return start


@pytest.fixture
def start(begin: Callable[..., System]) -> Iterator[Callable[..., System]]:
    """Start sandboxes of one's own; they are closed after the test."""
    systems: list[System] = []

    def one(**values: Any) -> System:
        systems.append(begin(**values))
        return systems[-1]

    yield one
    for system in systems:
        system.close()


@pytest.fixture(scope="session")
def outside() -> Iterator[Outside]:
    """What the machine has, and a sandbox must not find: a port, an abstract socket, words."""
    name = f"attacks-{secrets.token_hex(8)}"
    with (
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        marks = (CANARY.encode(), str(ROOT).encode())
        yield Outside(marks, (port.getsockname()[1],), (name,))
