"""What the next recipe item needs is started while this one runs: only what is at hand."""

from __future__ import annotations

import json

import pytest

CONFTEST = """\
import json
import threading
import time
from pathlib import Path

from pytest_sandbox import FakeRuntime

STARTED = []


class Engine(FakeRuntime):
    starts_ahead = {ahead}

    def start(self, spec, owner):
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.2)  # a start takes a while, and so the pool's turn comes
        system = super().start(spec, owner)
        STARTED.append((threading.current_thread().name, spec.no_new_privileges, system))
        return system


def pytest_sandbox_runtime(config, name):
    return Engine()


def pytest_unconfigure(config):
    lines = [(name, fenced, system.alive()) for name, fenced, system in STARTED]
    Path("started.json").write_text(json.dumps(lines))
"""

RECIPE = """\
[metadata]
name = "{name}"

[[steps]]
action = "run_command"
command = "{command}"

[verify]
command = "true"
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run three recipes; which thread started a system, whether it was fenced, is it alive."""
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"PYTEST_SANDBOX_{name}", str(pytester.path / name.lower()))
    folder = pytester.mkdir("recipes")
    for name in "abc":
        (folder / f"{name}.toml").write_text(RECIPE.format(name=name, command="make"))

    def call(*words: str, ahead: bool = True, **outcomes: int) -> list[tuple[str, bool, bool]]:
        pytester.makeconftest(CONFTEST.format(ahead=ahead))
        arguments = ("--sandbox", "--sandbox-target=linux/amd64/debian", *words)
        pytester.runpytest_subprocess(*arguments).assert_outcomes(**(outcomes or {"passed": 3}))
        return [tuple(line) for line in json.loads((pytester.path / "started.json").read_text())]

    return call


def test_the_first_systems_are_started_ahead_and_the_fenced_ones_here(run) -> None:
    started = run()
    assert len(started) == 6
    assert not any(alive for _, _, alive in started)
    assert {name for name, fenced, _ in started if fenced} == {"MainThread"}
    first = sorted(name for name, fenced, _ in started if not fenced)
    assert first == ["MainThread", "pytest-sandbox-pool", "pytest-sandbox-pool"]


@pytest.mark.parametrize("words", [("--sandbox-pool=0",), ()], ids=["no-pool", "engine"])
def test_nothing_is_where_it_may_not_be(run, words: tuple[str, ...]) -> None:
    started = run(*words, ahead=bool(words))
    assert len(started) == 6
    assert {name for name, _, _ in started} == {"MainThread"}


def test_what_was_started_for_an_item_that_never_came_is_closed(run, pytester) -> None:
    wrong = RECIPE.format(name="b", command="make") + 'pattern = "never said"'
    (pytester.path / "recipes" / "b.toml").write_text(wrong)
    started = run("-x", passed=1, failed=1)
    assert [name for name, *_ in started].count("pytest-sandbox-pool") == 2, "of b, of c"
    assert not any(alive for _, _, alive in started)
