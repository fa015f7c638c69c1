"""Who uses layers, and whether that process still lives.

An owner is boot id, pid namespace, pid and start time: a pid alone is soon somebody else's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci.lifetimes import boot_id, is_over, pid_namespace, started

if TYPE_CHECKING:
    from collections.abc import Mapping

FOREIGN_AGE: Final = 24 * 3600.0
"""What another boot (or machine) or pid namespace uses is kept for this many seconds."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: `started` is its start in clock ticks since boot."""

    boot: str
    namespace: str
    pid: int
    started: int

    def document(self) -> dict[str, Any]:
        """As JSON writes it."""
        return {
            "boot": self.boot,
            "namespace": self.namespace,
            "pid": self.pid,
            "started": self.started,
        }

    def is_dead(self, age: float) -> bool:
        """Whether the process is gone; one that cannot be seen from here is after a day, by the
        `age` in seconds of what it made.
        """
        if self.boot != boot_id() or self.namespace != pid_namespace():
            return age > FOREIGN_AGE
        return is_over(self.pid, self.started)


def owner_of(pid: int = 0) -> Owner:
    """A process as an owner; this one by default. Raises ProcessLookupError if it is gone, and
    OSError where the kernel does not tell.
    """
    return _owner(pid) if pid else _own(os.getpid())


def _owner(pid: int) -> Owner:
    began = started(pid)
    if began is None:
        raise ProcessLookupError(pid)
    return Owner(boot_id(), pid_namespace(), pid, began)


_own = lru_cache(maxsize=1)(_owner)
os.register_at_fork(after_in_child=_own.cache_clear)


def parse_owner(found: Mapping[str, Any]) -> Owner:
    """What `document` wrote. Raises ValueError, KeyError or TypeError for something else."""
    boot, namespace = str(found["boot"]), str(found["namespace"])
    return Owner(boot, namespace, int(found["pid"]), int(found["started"]))
