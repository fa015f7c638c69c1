"""File locks between processes; the files are never removed (a removed lock file is no lock)."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable
from pytest_sandbox.folders import CACHE_VARIABLE, cache_folder, make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

SAY_AFTER: Final = 2.0
"""Waiting is said after this many seconds."""


def lock_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of all lock files: below PYTEST_SANDBOX_CACHE or the user's cache folder."""
    return make_folder(cache_folder(environ) / "locks", CACHE_VARIABLE)


def image_lock_path(key: str) -> Path:
    """The lock file of one image hash; any other text is hashed, so that it is a file name."""
    name = key if key.isalnum() and 0 < len(key) <= 64 else hashlib.sha256(key.encode()).hexdigest()
    return lock_folder() / f"image-{name}.lock"


@contextlib.contextmanager
def image_lock(
    key: str,
    say: Callable[[str], None] = lambda _text: None,
    *,
    what: str = "image",
    timeout: float = 3600.0,
) -> Iterator[None]:
    """Hold the lock of one image while it is built or removed; waiting is said after 2 s.

    Raises ImageUnavailable after `timeout` seconds.
    """
    import filelock

    path = image_lock_path(key)
    lock = filelock.FileLock(str(path))
    began = time.monotonic()
    try:
        try:
            lock.acquire(timeout=min(SAY_AFTER, timeout))
        except filelock.Timeout:
            say(f"waiting for another process that builds {what} ({path})")
            lock.acquire(timeout=max(timeout - (time.monotonic() - began), 0))
    except filelock.Timeout as exc:
        msg = f"{what} was locked by another process for {timeout:g} s ({path})"
        raise ImageUnavailable(
            msg, blame=Blame.HOST, next_step="end the other run, or wait for it"
        ) from exc
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def image_lock_is_free(key: str) -> Iterator[bool]:
    """Hold the lock if nobody else does: True; else False, at once."""
    import filelock

    lock = filelock.FileLock(str(image_lock_path(key)))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
