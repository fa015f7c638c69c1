"""Acceptance tests run `pytest --sandbox` for real, on a real engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.base import Runtime

TARGET = "linux/amd64/debian"


@pytest.fixture(autouse=True)
def _shared(shared_folders: None) -> None:
    """Every acceptance test uses the bases that are there."""


@pytest.fixture(scope="session")
def engine() -> Runtime:
    """A runtime of our own, to look at what the runs under test leave behind."""
    from pytest_sandbox.errors import RuntimeUnavailable
    from pytest_sandbox.runtimes.detect import find_runtime

    try:
        return find_runtime("auto", os.environ)
    except RuntimeUnavailable as missing:
        if os.environ.get("PYTEST_SANDBOX_REQUIRE"):
            raise
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _skips_are_skips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTEST_SANDBOX_REQUIRE is for these tests; the runs inside them say what they require."""
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine")
    monkeypatch.delenv("PYTEST_SANDBOX_REQUIRE", raising=False)


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
