"""For the project's own tests: pytester runs pytest inside pytest."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.folders import cache_folder, data_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]

# pytester gives its runs a HOME of their own; a base that was made once on this machine, and the
# downloads, are shared all the same, as users' runs share them.
CACHE, DATA = str(cache_folder()), str(data_folder())


@pytest.fixture
def shared_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache and data folders, also below pytester."""
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", CACHE)
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", DATA)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, also where a shell started the tests in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
