"""The locks of a store: one for each key, and one that keeps references from a sweep.

Lock files are never removed: a removed lock file is no lock. All are flock(2), which the kernel
gives back when a process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, ImageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from filelock import FileLock

SAY_AFTER: Final = 2.0
"""Waiting is said after this many seconds."""
WAIT: Final = 3600.0
"""So long, in seconds, a lock is waited for."""


class Locks:
    """The lock files of one store, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def references(self, *, sweep: bool = False) -> Iterator[None]:
        """Held for milliseconds: shared while a reference is added, alone (`sweep`) while what has
        none is set aside. So nothing is swept between its reference and its use.
        """
        descriptor = os.open(self._folder / "references.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if sweep else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def acquire(
        self,
        kind: str,
        name: str,
        what: str,
        say: Callable[[str], None] = lambda _text: None,
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> FileLock:
        """Wait for the lock of one thing and hold it; any thread may release it.

        `what` names the thing in the line that `say` gets after 2 s; `cancelled` ends the waiting.
        Raises ImageUnavailable after an hour, or when cancelled.
        """
        import filelock

        file = self._folder / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:40]}.lock"
        lock = filelock.FileLock(file, mode=0o600, thread_local=False, poll_interval=0.02)
        began = time.monotonic()
        try:
            try:
                lock.acquire(timeout=SAY_AFTER, cancel_check=cancelled)
            except filelock.Timeout:
                if not cancelled():
                    say(f"waiting for another process that works on {what}")
                left = WAIT - (time.monotonic() - began)
                lock.acquire(timeout=left, cancel_check=cancelled)
        except filelock.Timeout:
            msg = f"{what} was locked by another process for {WAIT:g} s ({file})"
            raise ImageUnavailable(
                msg, blame=Blame.HOST, next_step="end the other process, or wait for it"
            ) from None
        return lock

    @contextlib.contextmanager
    def held(
        self, kind: str, name: str, what: str, say: Callable[[str], None] = lambda _text: None
    ) -> Iterator[None]:
        """`acquire` for the length of a block."""
        lock = self.acquire(kind, name, what, say)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def unless_held(self, kind: str) -> Iterator[bool]:
        """Take a lock if it is free: whether it was. For work that one process at a time does."""
        descriptor = os.open(self._folder / f"{kind}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)
