"""The systems that a run has open in one process: started, handed out, closed in the background."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from pytest_sandbox.closing import Closer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.pool import Ahead, Pool
    from pytest_sandbox.runtimes.base import Owner, Runtime, SandboxSpec, System

_ABANDON: Final = 10.0
"""Seconds that the end of a run waits for a start that is under way; the sweep removes it then."""
_CLOSE: Final = 120.0
"""Seconds that it waits for what is being closed."""


class Systems:
    """`pool` is how many systems of one kind may wait for tests (0: none are started ahead),
    `workers` how many processes share the machine.
    """

    def __init__(self, runtime: Runtime, owner: Owner, *, pool: int, workers: int) -> None:
        self._runtime = runtime
        self._owner = owner
        self._lock = threading.Lock()
        self._open: set[System] = set()
        self._closer = Closer()
        self.pool = self._make_pool(pool, workers)

    def _make_pool(self, wanted: int, workers: int) -> Pool | None:
        if not wanted or not getattr(self._runtime, "starts_ahead", False):
            return None
        from pytest_sandbox import headroom
        from pytest_sandbox.pool import Pool
        from pytest_sandbox.runtimes.locks import lock_folder

        each, total = headroom.ready(wanted, workers)
        if not each:
            return None
        return Pool(
            self._start,
            self._digest,
            lambda system: self._closer.submit(system.close),
            each=each,
            total=total,
            turns=lock_folder(),
            starters=headroom.starters(workers),
        )

    def _start(self, spec: SandboxSpec) -> System:
        return self._runtime.start(spec, self._owner)

    def _digest(self, reference: str) -> str:
        found = self._runtime.find_image(reference)
        return found.digest if found is not None else ""

    def start(self, spec: SandboxSpec, ahead: Ahead | None = None, digest: str = "") -> System:
        """A system as `spec` says; with `ahead` it may come from the pool, and `digest` is the
        content of its image where that is known. `release` ends it.
        """
        if ahead is None or self.pool is None:
            system = self._start(spec)
        else:
            system = self.pool.get(spec, ahead, digest)
        with self._lock:
            self._open.add(system)
        return system

    def release(self, system: System) -> None:
        """End a system off the caller's path; `close` waits for all of them."""
        with self._lock:
            if system not in self._open:
                return
            self._open.discard(system)
        self._closer.submit(system.close)

    def after(self, call: Callable[[], object]) -> None:
        """Make a call off the caller's path, after what was released before."""
        self._closer.submit(call)

    def close(self) -> None:
        """End everything that was started here, and wait for it."""
        if self.pool is not None:
            self.pool.close(_ABANDON)
        with self._lock:
            left, self._open = list(self._open), set()
        for system in left:
            self._closer.submit(system.close)
        self._closer.finish(_CLOSE)
