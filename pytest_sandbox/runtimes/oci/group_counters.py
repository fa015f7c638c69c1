"""The counters of a sandbox's cgroup, read before and after each command: the files stay open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.runtimes.shell import Counters

if TYPE_CHECKING:
    from pytest_sandbox.oci.cgroups import Cgroups

_OOM = (("memory", "memory.events"), ("memory", "memory.oom_control"))
_PIDS = (("pids", "pids.events"),)


class GroupCounters:
    """What the kernel counted in a group (see cgroup_usage for where)."""

    def __init__(self, cgroups: Cgroups, name: str) -> None:
        self._oom = _open(cgroups, name, _OOM)
        self._pids = _open(cgroups, name, _PIDS)

    def read(self) -> Counters:
        """Now; 0 for what this machine does not count, or when the group is gone."""
        return Counters(_value(self._oom, b"oom_kill"), _value(self._pids, b"max"))

    def close(self) -> None:
        """Done with it."""
        for descriptor in (self._oom, self._pids):
            if descriptor >= 0:
                os.close(descriptor)
        self._oom = self._pids = -1


def _open(cgroups: Cgroups, name: str, files: tuple[tuple[str, str], ...]) -> int:
    for controller, file in files:
        if folder := cgroups.folder(controller, name):
            try:
                return os.open(f"{folder}/{file}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
    return -1


def _value(descriptor: int, key: bytes) -> int:
    if descriptor < 0:
        return 0
    try:
        words = os.pread(descriptor, 4096, 0).split()
    except OSError:
        return 0
    return int(words[words.index(key) + 1]) if key in words else 0
