"""With PYTEST_SANDBOX_TEST_AHEAD=1 the suites of behaviours and of attacks get systems that were
started ahead: what holds for a system has to hold for one that waited.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.pool import Ahead, Pool

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.base import Owner, Runtime, SandboxSpec, System

VARIABLE = "PYTEST_SANDBOX_TEST_AHEAD"


def start(runtime: Runtime, spec: SandboxSpec, owner: Owner) -> System:
    """`runtime.start`, or a system of a pool where the variable is set."""
    if not os.environ.get(VARIABLE) or spec.mounts:
        return runtime.start(spec, owner)

    def digest(reference: str) -> str:
        found = runtime.find_image(reference)
        return found.digest if found is not None else ""

    with tempfile.TemporaryDirectory() as turns:
        pool = Pool(
            lambda one: runtime.start(one, owner),
            digest,
            lambda system: system.close(),
            each=1,
            total=1,
            turns=Path(turns),
        )
        try:
            pool.get(spec, Ahead(1, sure=True)).close()
            deadline = time.monotonic() + 60
            while not pool.started:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            taken = pool.get(spec, Ahead(0, sure=True))
            assert pool.taken == 1
            return taken
        finally:
            pool.close(10)
