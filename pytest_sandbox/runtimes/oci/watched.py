"""Use of resources of a sandbox without a cgroup, from its processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pytest_sandbox.runtimes.base import Stats
from pytest_sandbox.runtimes.oci.members import members


def tree_stats(first: int, top: int, peak: int) -> Stats:
    """What the processes of a sandbox and those that they waited for have used; `peak` is the
    watcher's (bytes). See members for `first` and `top`.
    """
    ticks, written, resident = 0, 0, 0
    for one in members(first, top):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{one}/stat").read_text("utf-8", "replace").rpartition(")")[2]
            ticks += sum(int(word) for word in fields.split()[11:15])
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = Path(f"/proc/{one}/statm").read_text("ascii").split()[1]
            resident += int(pages) * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError, IndexError, ValueError):
            for line in Path(f"/proc/{one}/io").read_text("ascii").splitlines():
                if line.startswith("write_bytes:"):
                    written += int(line.split()[1])
    return Stats(max(peak, resident), ticks / os.sysconf("SC_CLK_TCK"), written)
