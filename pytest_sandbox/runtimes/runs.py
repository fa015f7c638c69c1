"""What the processes of one run know of each other: who reaps, and whether any used an engine.

One small file a run in the user's cache folder; the next run removes the file of a dead one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from pytest_sandbox.folders import make_folder
from pytest_sandbox.runtimes.base import Owner
from pytest_sandbox.runtimes.locks import lock_folder
from pytest_sandbox.runtimes.owner import current_owner, owner_is_dead

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.runtimes.base import Runtime

_PR_SET_PDEATHSIG: Final = 1


def _folder() -> Path:
    return make_folder(lock_folder().parent / "runs", "PYTEST_SANDBOX_CACHE")


def enter_run(runtime: Runtime, run: str) -> None:
    """Say that this run uses an engine; the first process to say so removes what dead runs left."""
    if announce(run):
        reap_dead(runtime)


def announce(run: str) -> bool:
    """Say that this run uses an engine; whether this is the first process to say so."""
    path = _folder() / f"{run}.json"
    owner = current_owner(run)
    try:
        with path.open("x", encoding="utf-8") as out:
            json.dump({**asdict(owner), "created": time.time()}, out)
    except FileExistsError:
        return False
    return True


def reap_dead(runtime: Runtime) -> None:
    """Remove what dead runs left."""
    _forget_dead_runs()
    runtime.reap(lambda other, created: owner_is_dead(other, created, time.time()))


def leave_run(run: str) -> bool:
    """The run is over: forget it. Whether any of its processes had used an engine."""
    path = _folder() / f"{run}.json"
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _forget_dead_runs() -> None:
    for path in _folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            data = json.loads(path.read_text(encoding="utf-8"))
            created = float(data.pop("created"))
            if owner_is_dead(Owner(**data), created, time.time()):
                path.unlink()


def end_with_parent() -> None:
    """Let this process end when its parent does (an xdist worker whose controller was killed).

    Without it a worker goes on for up to 15 s, and the next run finds its sandboxes still owned.
    prctl(2), PR_SET_PDEATHSIG; elsewhere than on Linux nothing happens.
    """
    parent = os.getppid()
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGTERM)
