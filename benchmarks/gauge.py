"""A pytest plugin that notes every so many tests what the run takes: time, memory, descriptors,
threads, mounts and files of sandboxes. Loaded with `-p benchmarks.gauge`; BENCH_GAUGE names the
file (each process appends its lines to one of its own) and the number of tests between two notes.
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

VARIABLE = "BENCH_GAUGE"
_FOLDERS = ("sandboxes", "trash", "owners", "uses", "leases", "tmp")
_seen = {"tests": 0}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    done = yield
    _seen["tests"] += 1
    every = int(os.environ[VARIABLE].partition(" ")[0])
    if _seen["tests"] % every == 0:
        _note(item.config)
    return done


def _note(config: pytest.Config) -> None:
    # Only what cannot be collected counts.
    gc.collect()
    path = Path(os.environ[VARIABLE].partition(" ")[2])
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    line = {"tests": _seen["tests"], "at": time.monotonic(), **_own(), **_sandboxes(config)}
    with path.with_suffix(f".{worker}").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _own() -> dict[str, Any]:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    words = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "rss": int(words["VmRSS"].split()[0]) << 10,
        "threads": int(words["Threads"]),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def _sandboxes(config: pytest.Config) -> dict[str, int]:
    """What the supervisor has mounted, and what lies in the store beside images."""
    from pytest_sandbox.state import STATE

    opened = config.stash[STATE].opened
    runtime: Any = opened._runtime if opened is not None else None
    if runtime is None:
        return {"mounts": 0, "entries": 0, "bytes": 0}
    mounts = Path(f"/proc/{runtime.supervisor.pid}/mountinfo").read_text(encoding="utf-8")
    entries = size = 0
    for name in _FOLDERS:
        found, taken = _weigh(runtime.store.root / name)
        entries, size = entries + found, size + taken
    return {"mounts": len(mounts.splitlines()), "entries": entries, "bytes": size}


def _weigh(folder: Path) -> tuple[int, int]:
    """Entries of a folder, and the bytes of all below it; what goes meanwhile is nothing."""
    try:
        entries = len(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return 0, 0
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118
            except OSError:
                continue
    return entries, size
