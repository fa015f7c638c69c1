"""installed(): an installation is kept when it is whole, for what it was made of, and no longer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_sandbox import FakeRuntime, ImageUnavailable, StepFailed
from pytest_sandbox.installed import installed_snapshot
from pytest_sandbox.session import RunSession
from pytest_sandbox.settings import Settings

RECIPE = """
[metadata]
name = "tool"

[[steps]]
action = "run_command"
command = "make-it"

[verify]
command = "true"
"""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "data"))


class Engine(FakeRuntime):
    """Counts how often the recipe's step ran; its statuses are what `statuses` says, then 0."""

    def __init__(self, *statuses):
        super().__init__(results=self.answer_of)
        self.statuses = list(statuses)
        self.made = 0

    def answer_of(self, argv):
        if "make-it" not in " ".join(argv):
            return 0
        self.made += 1
        return self.statuses.pop(0) if self.statuses else 0


@pytest.fixture
def run(tmp_path):
    """A run of its own on an engine; `name` tells runs apart."""
    (tmp_path / "tool.toml").write_text(RECIPE)

    def make(engine, name="one", **settings):
        given = replace(Settings(), **settings)
        return RunSession(
            given, tmp_path, name, folders=(tmp_path,), find=lambda _: engine, environ={}
        )

    return make


def test_one_installation_serves_all_runs(run):
    engine = Engine()
    first = installed_snapshot(run(engine), "tool", {})
    for name in ("one", "two"):
        assert installed_snapshot(run(engine, name), "tool", {}).name == first.name
    assert engine.made == 1
    assert first.digest == engine.find_image(first.name).digest


def test_what_fails_is_not_kept(run):
    engine = Engine(1)
    session = run(engine)
    with pytest.raises(StepFailed):
        installed_snapshot(session, "tool", {})
    assert not [info for info in engine.images() if "installed" in info.name]
    found = installed_snapshot(session, "tool", {})
    assert (engine.made, engine.find_image(found.name) is not None) == (2, True)


def test_what_is_gone_or_somebody_elses_is_made_again(run):
    engine = Engine()
    session = run(engine)
    found = installed_snapshot(session, "tool", {})
    engine.remove_image(found.name)
    assert installed_snapshot(session, "tool", {}).name == found.name
    assert engine.made == 2
    info = engine.find_image(found.name)
    engine._images[found.name] = replace(info, labels={"org.pytest-sandbox.hash": "other"})
    installed_snapshot(session, "tool", {})
    assert engine.made == 3


def test_rebuild_makes_it_anew_once_a_run(run):
    engine = Engine()
    installed_snapshot(run(engine), "tool", {})
    workers = [run(engine, "again", rebuild=True) for _ in range(2)]
    for session in (*workers, *workers):
        installed_snapshot(session, "tool", {})
    assert engine.made == 2


def test_another_recipe_text_or_target_is_another_installation(run, tmp_path):
    engine = Engine()
    names = [installed_snapshot(run(engine), "tool", {}).name]
    names.append(installed_snapshot(run(engine), "tool", {"family": "alpine"}).name)
    (tmp_path / "tool.toml").write_text(RECIPE.replace("make-it", "make-it twice"))
    names.append(installed_snapshot(run(engine), "tool", {}).name)
    assert len(set(names)) == engine.made == 3


def test_one_that_vanishes_at_once_is_an_error_that_says_so(run):
    class Forgetful(Engine):
        def keep(self, files, name, run, labels):
            kept = super().keep(files, name, run, labels)
            self.remove_image(kept)
            return kept

    with pytest.raises(ImageUnavailable, match="removed as soon as it was made"):
        installed_snapshot(run(Forgetful()), "tool", {})
