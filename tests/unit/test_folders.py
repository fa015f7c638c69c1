"""Where things are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sandbox import folders
from pytest_sandbox.errors import Blame, SandboxError


def test_the_variables_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.sys, "platform", "linux")
    home = {"HOME": "/home/me"}
    assert folders.cache_folder(home) == Path("/home/me/.cache/pytest-sandbox")
    assert folders.data_folder(home) == Path("/home/me/.local/share/pytest-sandbox")
    xdg = {**home, "XDG_CACHE_HOME": "/c", "XDG_DATA_HOME": "relative"}
    assert folders.cache_folder(xdg) == Path("/c/pytest-sandbox")
    assert folders.data_folder(xdg) == Path("/home/me/.local/share/pytest-sandbox")
    own = {**xdg, "PYTEST_SANDBOX_CACHE": "/mine"}
    assert folders.cache_folder(own) == Path("/mine")


def test_on_macos_the_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.sys, "platform", "darwin")
    found = folders.cache_folder({"HOME": "/Users/me", "XDG_CACHE_HOME": "/c"})
    assert found == Path("/Users/me/Library/Caches/pytest-sandbox")


def test_a_folder_that_cannot_be_made_names_its_variable() -> None:
    with pytest.raises(SandboxError, match="set X to a folder") as caught:
        folders.make_folder(Path("/proc/nothing"), "X")
    assert caught.value.blame is Blame.HOST
