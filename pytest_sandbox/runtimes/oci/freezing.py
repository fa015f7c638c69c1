"""Stop every process of a sandbox, and let them go on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from pytest_sandbox.runtimes.oci.members import members


def stop(first: int, top: int) -> list[int]:
    """Stop every process of the sandbox of `first` but that one; those that were stopped (see
    members for `top`).

    A process that forks meanwhile is found by looking again: a stopped one starts nothing new.
    """
    stopped: list[int] = []
    for _ in range(100):
        new = [pid for pid in members(first, top)[1:] if pid not in stopped]
        if not new:
            break
        for pid in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP)
        stopped += new
    deadline = time.monotonic() + 1.0
    while any(_runs(pid) for pid in stopped) and time.monotonic() < deadline:
        time.sleep(0.001)
    return stopped


def resume(stopped: list[int]) -> None:
    """Let them go on."""
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGCONT)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        return text.rpartition(")")[2].split()[0] not in {"T", "t", "Z", "X"}
    return False
