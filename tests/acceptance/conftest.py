"""Acceptance tests run `pytest --sandbox` for real: without a daemon, and on Docker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.leftovers import Docker, Oci

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_sandbox.runtimes.base import Runtime
    from tests.acceptance.leftovers import Leftovers

TARGET = "linux/amd64/debian"
RUNTIMES = ("oci", "docker")


@pytest.fixture(autouse=True)
def _shared(shared_folders: None) -> None:
    """Every acceptance test uses the bases that are there."""


@pytest.fixture(scope="session", params=RUNTIMES)
def engine(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """A runtime of our own, to look at what the runs under test leave behind.

    A test that shows nothing new on the second one is marked `on["oci"]` or `on["docker"]`.
    """
    found = _find(request.param)
    yield found
    found.close()


@pytest.fixture
def each_runtime(_runs_use_the_engine: None) -> tuple[str, ...]:
    """For a test that runs the same on all of them itself: their names."""
    for name in RUNTIMES:
        _find(name).close()
    return RUNTIMES


REQUIRE = bool(os.environ.get("PYTEST_SANDBOX_REQUIRE"))


def _find(name: str) -> Runtime:
    from pytest_sandbox.errors import RuntimeUnavailable
    from pytest_sandbox.runtimes.detect import find_runtime

    try:
        return find_runtime(name, os.environ)
    except RuntimeUnavailable as missing:
        if REQUIRE:
            raise
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _runs_use_the_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test starts uses its engine; an absent one that it makes absent is a skip there."""
    if "engine" in request.fixturenames:
        monkeypatch.setenv("PYTEST_SANDBOX_RUNTIME", request.getfixturevalue("engine").name)
    monkeypatch.delenv("PYTEST_SANDBOX_REQUIRE", raising=False)


@pytest.fixture
def leftovers(engine: Runtime) -> Leftovers:
    """What runs have on the engine."""
    return Oci(engine) if engine.name == "oci" else Docker(engine)


@pytest.fixture
def recipe(pytester: pytest.Pytester) -> Callable[[str, str], Path]:
    """Write recipes/NAME.toml with a body of steps and verify."""
    pytester.makeini("[pytest]\n")
    folder = pytester.mkdir("recipes")

    def write(name: str, body: str) -> Path:
        path = folder / f"{name}.toml"
        path.write_text(f'[metadata]\nname = "{name}"\n\n{body}')
        return path

    return write


@pytest.fixture
def prove(pytester: pytest.Pytester, engine: Runtime) -> Callable[..., pytest.RunResult]:
    """Run `pytest --sandbox` on debian in a process of its own."""
    del engine

    def run(*args: str, target: str = TARGET) -> pytest.RunResult:
        targets = ["--sandbox-target", target] if target else []
        return pytester.runpytest_subprocess("--sandbox", *targets, "-p", "no:cacheprovider", *args)

    return run
