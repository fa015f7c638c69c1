"""Systems that were started before a test asked for them.

A pooled system has never run anything of a test, and never goes back: it is taken once, and closed
like any other. Only systems that are alike in everything stand in for each other (see `key_of`).
The pool starts small and grows when tests had to wait; it never starts more than tests can still
take.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox import headroom
from pytest_sandbox.closing import STAND_BACK
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.base import SandboxSpec, System

_IDLE: Final = 3600.0
"""A system that waits longer than this many seconds ends by its own clock."""
_PATIENCE: Final = 2.0
"""A test waits for a start that is under way for at most so many seconds, then makes its own."""
_LOOK: Final = 0.005
"""Seconds between two looks whether it is this process's turn to start one."""
_KINDS: Final = 64
"""More kinds than this are not remembered."""


class Ahead(NamedTuple):
    """What is known of tests to come: at most `most` more will ask for the same system.

    `sure` says that they will; else one that was asked for twice counts as asked for again.
    """

    most: int
    sure: bool


EXPECTED: Final = Ahead(-1, sure=True)
"""For who has said `Pool.expect` before: one less is to come than was."""


Key = tuple[Any, ...]


def key_of(spec: SandboxSpec, digest: str) -> Key | None:
    """What makes two systems the same; None where a caller's own files are mounted.

    `digest` is the content id of the image that the reference stands for now.
    """
    if spec.mounts:
        return None
    return (
        spec.image,
        digest,
        spec.target,
        spec.limits,
        spec.network,
        spec.no_new_privileges,
        frozenset(spec.env.items()),
        spec.user,
        spec.cwd,
        frozenset(spec.tmpfs.items()),
        frozenset(spec.labels.items()),
    )


@dataclass(slots=True, eq=False)
class _Kind:
    """Systems that are alike."""

    spec: SandboxSpec
    digest: str
    ready: deque[System] = field(default_factory=deque)
    starting: int = 0
    asked: int = 0
    depth: int = 1
    """How many are to be ready; doubled when a test found none."""
    ahead: int = 0
    waiting: int = 0
    """Tests that wait for one that is being started."""
    failed: bool = False
    """The last start ahead did not work: nothing is tried before a test's own start did."""
    used: float = 0.0

    def lacks(self) -> int:
        """How many should be started."""
        if self.failed:
            return 0
        return min(self.depth, self.ahead) - len(self.ready) - self.starting


class Pool:
    """`start` starts a system, `digest` gives the content id of a reference's image (empty: there
    is none), `discard` takes systems that nobody will use.

    `each` bounds the waiting systems of one kind, `total` those of all kinds, `starters` the
    threads. `turns` is the folder in which a user's processes take turns at starting ahead.
    """

    def __init__(
        self,
        start: Callable[[SandboxSpec], System],
        digest: Callable[[str], str],
        discard: Callable[[System], None],
        *,
        each: int,
        total: int,
        turns: Path,
        starters: int = 1,
    ) -> None:
        self._start = start
        self._digest = digest
        self._discard = discard
        self._each = each
        self._total = total
        self._turns = turns
        self._starters = starters
        self._changed = threading.Condition(threading.Lock())
        self._kinds: dict[Key, _Kind] = {}
        self._threads: list[threading.Thread] = []
        self._over = False
        self._pid = os.getpid()
        self.started = 0
        """Systems that were started ahead."""
        self.taken = 0
        """Those of them that tests got."""

    # --- the test's side --------------------------------------------------------------------

    def get(self, spec: SandboxSpec, ahead: Ahead, digest: str = "") -> System:
        """A system as `spec` says: a waiting one, or one that is started here and now.

        `ahead` is what comes after this one, `digest` the content of the spec's image where that
        is known. Raises what starting raises.
        """
        kind = self._find(spec, ahead, digest)
        if kind is None:
            return self._start(spec)
        if ahead is EXPECTED:
            with self._changed:
                kind.ahead = max(kind.ahead - 1, 0)
        while (found := self._next(kind)) is not None:
            if _begun(found, spec):
                self.taken += 1
                return found
            self._discard(found)
        own = self._start(spec)
        with self._changed:
            kind.failed = False  # it can be done: go on with the next ones
            self._wake(kind)
        return own

    def expect(self, spec: SandboxSpec, digest: str) -> None:
        """Such a system will be asked for once, soon: start it. Who asks says EXPECTED."""
        kind = self._find(spec, EXPECTED, digest)
        if kind is not None:
            with self._changed:
                kind.ahead += 1
                self._wake(kind)

    def _find(self, spec: SandboxSpec, ahead: Ahead, digest: str) -> _Kind | None:
        if spec.mounts or os.getpid() != self._pid:
            return None  # in a fork: the threads stayed behind, and maybe a lock with them
        digest = digest or self._digest(spec.image)
        key = key_of(spec, digest)
        if key is None or not digest:
            return None
        useless: list[System] = []
        with self._changed:
            if self._over:
                return None
            kind = self._kinds.get(key)
            if kind is None:
                useless = self._forget(spec.image, digest)
                kind = self._kinds[key] = _Kind(spec, digest)
            kind.asked += 1
            kind.used = time.monotonic()
            if ahead is not EXPECTED:
                # Whoever has asked twice will ask again.
                kind.ahead = ahead.most if ahead.sure or kind.asked > 1 else 0
                if not kind.ready and kind.asked > 1:
                    kind.depth = min(kind.depth * 2, self._each)
        for system in useless:
            self._discard(system)
        return kind

    def _forget(self, image: str, digest: str) -> list[System]:
        """Before a kind is added. What was started from an image that has another content now is of
        no use: it is given back.
        """
        gone = [
            key
            for key, kind in self._kinds.items()
            if kind.spec.image == image and kind.digest != digest
        ]
        if len(self._kinds) >= _KINDS:
            gone.append(min(self._kinds, key=lambda key: self._kinds[key].used))
        useless: list[System] = []
        for key in dict.fromkeys(gone):
            kind = self._kinds.pop(key)
            kind.ahead = 0
            useless += kind.ready
            kind.ready.clear()
        return useless

    def _next(self, kind: _Kind) -> System | None:
        """A waiting system, or the one that is being started: that is quicker than another one."""
        deadline = time.monotonic() + _PATIENCE
        with self._changed:
            kind.waiting += 1
            try:
                while not kind.ready and kind.starting and not self._over:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            finally:
                kind.waiting -= 1
            if not kind.ready:
                return None
            system = kind.ready.popleft()
            self._wake(kind)
            return system

    def close(self, seconds: float) -> None:
        """Nothing is started any more; what waits is discarded, and what is being started ends with
        its start, for which this waits at most so many seconds. May be called again.
        """
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._over = True
            useless = [system for kind in self._kinds.values() for system in kind.ready]
            self._kinds.clear()
            self._changed.notify_all()
        for system in useless:
            self._discard(system)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- the starters' side -----------------------------------------------------------------

    def _wake(self, kind: _Kind) -> None:
        if self._over or kind.lacks() <= 0:
            return
        if len(self._threads) < self._starters:
            thread = threading.Thread(target=self._work, name="pytest-sandbox-pool", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                idle = self._wanting() is None
                while self._wanting() is None and not self._over:
                    self._changed.wait()
                if self._over:
                    return
                idle = idle and not any(one.waiting for one in self._kinds.values())
            if idle:
                time.sleep(STAND_BACK)
            with ExitStack() as stack:
                if stack.enter_context(headroom.turn(self._turns)):
                    self._work_once()
                    continue
            with self._changed:
                if not self._over:
                    self._changed.wait(_LOOK)

    def _work_once(self) -> None:
        with self._changed:
            kind = self._wanting()
            if kind is None or self._over:
                return
            useless = self._make_room(kind)
            kind.starting += 1
        for system in useless:
            self._discard(system)
        made: System | None = None
        try:
            made = self._start_ahead(kind)
        finally:
            with self._changed:
                kind.starting -= 1
                kind.failed = made is None
                wanted = len(kind.ready) < kind.ahead + kind.waiting
                kept = made is not None and wanted and not self._over
                if made is not None and kept:
                    self.started += 1
                    kind.ready.append(made)
                self._changed.notify_all()
        if made is not None and not kept:
            with suppress(Exception):  # the sweep at the end looks again
                made.close()

    def _wanting(self) -> _Kind | None:
        """The kind that needs a system most: none is ready, and it was asked for last."""
        wanting = [one for one in self._kinds.values() if one.lacks() > 0]
        return max(wanting, key=lambda one: (not one.ready, one.used), default=None)

    def _make_room(self, kind: _Kind) -> list[System]:
        """Where too many wait, the kind that was not asked for the longest gives one up."""
        if sum(len(one.ready) + one.starting for one in self._kinds.values()) < self._total:
            return []
        others = [one for one in self._kinds.values() if one.ready and one is not kind]
        oldest = min(others, key=lambda one: one.used, default=None)
        if oldest is None:
            return []
        oldest.ahead = 0  # until it is asked for again
        return [oldest.ready.popleft()]

    def _start_ahead(self, kind: _Kind) -> System | None:
        """None where it fails: the next test's own start says why."""
        if headroom.free_memory() < headroom.IDLE * headroom.SHARE:
            return None
        limits = replace(kind.spec.limits, timeout=_IDLE)
        with suppress(Exception), ExitStack() as stack:
            system = self._start(replace(kind.spec, limits=limits, purpose="pool"))
            stack.callback(system.close)  # unless it is known of which content it is
            if self._digest(kind.spec.image) == kind.digest:
                stack.pop_all()
                return system
        return None


def _begun(system: System, spec: SandboxSpec) -> bool:
    try:
        return system.begin(spec)
    except SandboxError:
        return False
