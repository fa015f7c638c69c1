"""A process that watches sandboxes without a cgroup: it adds up what each one's processes have
resident, counts them, and kills the largest of one that has too much.

One serves all sandboxes that a worker of the supervisor starts. It is the supervisor's child, not
the worker's: it outlives that one, until its last sandbox is gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.members import members, space_of, spaces, tasks

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

COUNTERS: Final = struct.Struct("=QQQ")
"""Memory kills, times that the number of processes was at its limit, peak of memory in bytes."""
_PERIOD: Final = 0.04
_PAGE: Final = mmap.PAGESIZE
_KILL: Final = signal.SIGKILL
_watchers: list[socket.socket] = []
"""The way to this process's watcher."""


def watch(
    pid: int, counters: int, *, memory: int | None, pids: int | None, spare: bool = False
) -> None:
    """Have the sandbox whose first process is `pid` watched, until that ends. Raises OSError.

    `memory` is in bytes. `spare`: the first process is ours, and its memory does not count.
    `counters` is the file that COUNTERS are written into.
    """
    told = {"pid": pid, "memory": memory, "pids": pids, "spare": spare}
    process = os.pidfd_open(pid)
    try:
        try:
            messages.send(_watcher(), told, [process, counters])
        except BrokenPipeError:  # it was killed
            _watchers.pop().close()
            messages.send(_watcher(), told, [process, counters])
    finally:
        os.close(process)


def _watcher() -> socket.socket:
    if not _watchers:
        mine, theirs = messages.pair()
        with theirs:
            if linux.clone3(linux.CLONE_PARENT) == 0:
                _serve(theirs)
            _watchers.append(mine)
    return _watchers[0]


def _serve(channel: socket.socket) -> NoReturn:
    """In the watcher. It never returns."""
    try:
        linux.close_all_but([channel.fileno()])
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        watched: list[_Watched] = []
        more = True
        while more or watched:
            if not watched:
                more = _hear(channel, watched)
                continue
            time.sleep(_PERIOD)
            while more and select.select([channel], [], [], 0)[0]:
                more = _hear(channel, watched)
            watched = [one for one in watched if not one.is_over()]
            found: dict[int, list[int]] = {}
            if not all(one.spare for one in watched):
                found = spaces(os.getppid())
            for one in watched:
                # What commands it has are its first process's own, where that starts them.
                one.look(members(one.first, one.first) if one.spare else found.get(one.space, ()))
    finally:
        os._exit(0)


def _hear(channel: socket.socket, watched: list[_Watched]) -> bool:
    """Take one more; False when there will be none."""
    received = messages.receive(channel)
    if received is None:
        return False
    message, (process, counters) = received
    with contextlib.suppress(OSError):  # it has ended already
        watched.append(_Watched(process, counters, **message))
    return True


class _Watched:
    """One sandbox."""

    def __init__(
        self,
        process: int,
        counters: int,
        *,
        pid: int,
        memory: int | None,
        pids: int | None,
        spare: bool,
    ) -> None:
        self.space = space_of(pid)
        self._process, self._counters = process, counters
        self.first = pid
        self._memory, self._pids = memory, pids
        self.spare = spare
        self._kills, self._full, self._peak = 0, 0, 0
        self._was_full = False

    def is_over(self) -> bool:
        """Whether its first process has ended."""
        if not select.select([self._process], [], [], 0)[0]:
            return False
        os.close(self._process)
        os.close(self._counters)
        return True

    def look(self, processes: Sequence[int]) -> None:
        """Count, and kill where it has too much."""
        number, resident = 0, {}
        for pid in processes:
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
                # Shared file pages are left out: many processes map the same.
                if pid != self.first or not self.spare:
                    resident[pid] = (int(fields[1]) - int(fields[2])) * _PAGE
                number += tasks(pid)
        total = sum(resident.values())
        self._peak = max(self._peak, total)
        if self._memory is not None and total > self._memory:
            with contextlib.suppress(ProcessLookupError):
                os.kill(_largest(resident, self._memory), _KILL)
            self._kills += 1
        now_full = self._pids is not None and number >= self._pids - 1
        self._full += now_full and not self._was_full
        self._was_full = now_full
        os.pwrite(self._counters, COUNTERS.pack(self._kills, self._full, self._peak), 0)


def _largest(resident: Mapping[int, int], memory: int) -> int:
    """As the kernel chooses: by memory, and what the process asked for (proc(5), oom_score_adj)."""

    def badness(pid: int) -> float:
        asked = 0
        with contextlib.suppress(OSError, ValueError):
            asked = int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii"))
        return resident[pid] + asked * memory / 1000

    return max(resident, key=badness)
