"""Locks between processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import ImageUnavailable
from pytest_sandbox.runtimes import locks

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path))


HOLDER = """
import sys
from pytest_sandbox.runtimes.locks import image_lock
with image_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder() -> object:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "ab" * 32], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield child


def test_a_held_lock_is_not_free(holder: subprocess.Popen[bytes]):
    with locks.image_lock_is_free("ab" * 32) as free:
        assert not free
    with locks.image_lock_is_free("cd" * 32) as free:
        assert free
    holder.communicate()
    with locks.image_lock_is_free("ab" * 32) as free:
        assert free


def test_waiting_is_said(holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "SAY_AFTER", 0.2)
    said: list[str] = []
    timer = threading.Timer(0.6, holder.kill)
    timer.start()
    with locks.image_lock("ab" * 32, said.append, what="image x"):
        assert len(said) == 1
    assert "image x" in said[0]
    timer.join()


def test_waiting_ends(holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "SAY_AFTER", 0.1)
    with pytest.raises(ImageUnavailable, match="locked"), locks.image_lock("ab" * 32, timeout=0.3):
        pytest.fail("it is held by another process")


def test_lock_files_stay(tmp_path: Path):
    with locks.image_lock("ab" * 32):
        pass
    assert [path.name for path in (tmp_path / "locks").iterdir()] == [f"image-{'ab' * 32}.lock"]


def test_other_keys_become_file_names(tmp_path: Path):
    for key in ("../x", "", "a" * 65):
        assert locks.image_lock_path(key).parent == tmp_path / "locks"
        assert ".." not in locks.image_lock_path(key).name
