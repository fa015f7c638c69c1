"""What others may add to pytest-sandbox, as pluggy hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.plans.model import Plan
    from pytest_sandbox.runtimes.base import Runtime, System


@pytest.hookspec(firstresult=True)
def pytest_sandbox_runtime(config: pytest.Config, name: str) -> Runtime | None:
    """Give the runtime of this run; the first plugin that does not return None wins.

    `name` is the value of `--sandbox-runtime`. Return None to leave it to the built-in detection.
    Called on first use of an engine, never at collection. This is how a conftest puts a
    FakeRuntime in.
    """


@pytest.hookspec
def pytest_sandbox_prove(config: pytest.Config, system: System, plan: Plan) -> None:
    """Prove more of an installation after its verify table held, in the same system (no network,
    no new privileges).

    Raise CheckFailed(..., proof=NAME) for what does not hold: the report then begins with
    `prove/NAME: `.
    """
