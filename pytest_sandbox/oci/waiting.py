"""Waiting for the end of a process, at most for a while (pidfd_open(2))."""

from __future__ import annotations

import os
import select


def ended(pid: int, seconds: float) -> bool:
    """Whether the process ends within so many seconds; a child is not reaped.

    At once when it does: Popen.wait with a timeout sleeps up to 50 ms longer. Raises
    ProcessLookupError where there is no such process.
    """
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    finally:
        os.close(descriptor)
