"""Capabilities as the kernel numbers them, and the limits of processes."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
"""capabilities(7), in the kernel's order."""
_BITS: Final = {f"CAP_{name}": 1 << number for number, name in enumerate(_NAMES)}
SYS_ADMIN: Final = _BITS["CAP_SYS_ADMIN"]
EVERY: Final = (1 << len(_NAMES)) - 1


def bits(names: Iterable[str]) -> int:
    """A set of capabilities as bits. Raises KeyError for an unknown one."""
    return sum(_BITS[name] for name in names)


def unwanted(bounding: Iterable[str]) -> list[int]:
    """The capabilities that are not in a bounding set, as the kernel numbers them. It may not have
    the last ones yet.
    """
    wanted = bits(bounding)
    return [number for number in range(len(_NAMES)) if not wanted >> number & 1]


def limits(entries: Iterable[Mapping[str, Any]]) -> list[tuple[int, tuple[int, int]]]:
    """`process.rlimits` for resource.setrlimit, not above what this process may have itself."""
    found = []
    for entry in entries:
        number = getattr(resource, entry["type"])
        most = resource.getrlimit(number)[1]
        soft, hard = entry["soft"], entry["hard"]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        found.append((number, (soft, hard)))
    return found
