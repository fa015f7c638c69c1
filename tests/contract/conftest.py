"""One suite of behaviours, over every runtime and every path through it.

Docker is the engine that DOCKER_HOST (or the usual detection) names, Podman the service at
PYTEST_SANDBOX_TEST_PODMAN, else at the usual socket. The image is PYTEST_SANDBOX_TEST_IMAGE, else
the debian base. With PYTEST_SANDBOX_TEST_AHEAD=1 the systems come from a pool. Without an engine
its part is skipped, with PYTEST_SANDBOX_REQUIRE it fails.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.detect import podman_endpoint
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target
from tests import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.runtimes.base import Runtime, System

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "docker-shell": DockerRuntime,
    "docker-exec": lambda: DockerRuntime(fast_path=False),
    "podman": DockerRuntime,
    "oci-shell": lambda: OciRuntime(launcher="runc"),
    "oci-exec": lambda: OciRuntime(launcher="runc", fast_path=False),
    "oci-direct": lambda: OciRuntime(launcher="direct"),
    "oci-direct-ahead": lambda: OciRuntime(launcher="direct"),
}
PODMAN = "PYTEST_SANDBOX_TEST_PODMAN"
RUN = f"contract{secrets.token_hex(4)}"


def missing(reason: str) -> None:
    """Skip, or fail where an engine is required."""
    if os.environ.get("PYTEST_SANDBOX_REQUIRE"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", params=list(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """A connected runtime; everything of it is swept at the end."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            if request.param == "podman":
                # For the processes that tests start, too.
                patch.setenv("DOCKER_HOST", os.environ.get(PODMAN) or podman_endpoint(os.environ))
            if request.param.endswith("-ahead"):
                patch.setenv(ahead.VARIABLE, "1")
            found = RUNTIMES[request.param]()
            info = found.info()
        except SandboxError as exc:
            missing(str(exc))
        assert info.name == request.param.partition("-")[0]
        yield found
        found.sweep(RUN)
        found.close()


@pytest.fixture(scope="session")
def target(runtime: Runtime) -> Target:
    return Target("linux", runtime.info().arches[0], "debian")


@pytest.fixture(scope="session")
def image(runtime: Runtime, target: Target) -> str:
    name = os.environ.get("PYTEST_SANDBOX_TEST_IMAGE")
    if name is None:
        from pytest_sandbox.images.families import load_families
        from pytest_sandbox.runtimes.bases import ensure_base

        try:
            return ensure_base(runtime, load_families()["debian"].image, target).name
        except SandboxError as exc:
            missing(str(exc))
    elif runtime.find_image(name) is None:
        missing(f"image {name} is not on the engine; next: pytest-sandbox image bootstrap debian")
    return name


@pytest.fixture(scope="session")
def spec(image: str, target: Target) -> Callable[..., SandboxSpec]:
    """Make a SandboxSpec: keywords of Limits go there, the others into the spec."""

    def make(**values: Any) -> SandboxSpec:
        names = ("memory", "cpus", "pids", "timeout", "nofile", "disk", "output")
        limits = {key: values.pop(key) for key in names if key in values}
        return SandboxSpec(
            values.pop("image", image), target, Limits().override(**limits), **values
        )

    return make


@pytest.fixture
def start(runtime: Runtime, spec: Callable[..., SandboxSpec]) -> Iterator[Callable[..., System]]:
    """Start sandboxes of one's own; they are closed after the test."""
    systems: list[System] = []

    def begin(run: str = RUN, **values: Any) -> System:
        systems.append(ahead.start(runtime, spec(**values), current_owner(run)))
        return systems[-1]

    yield begin
    for system in systems:
        system.close()


@pytest.fixture(scope="session")
def system(runtime: Runtime, spec: Callable[..., SandboxSpec]) -> Iterator[System]:
    """One sandbox for all tests that leave it usable."""
    asked = spec(env={"FROM_SPEC": "a b"}, timeout=900.0, pids=200)
    found = ahead.start(runtime, asked, current_owner(RUN))
    yield found
    found.close()
