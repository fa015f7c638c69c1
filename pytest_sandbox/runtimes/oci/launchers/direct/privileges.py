"""What process 1 of a sandbox gives up, and what each of its commands gives up on top of that."""

from __future__ import annotations

import fcntl
import resource
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux

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
_SYS_ADMIN: Final = _BITS["CAP_SYS_ADMIN"]
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def bits(names: Iterable[str]) -> int:
    """A set of capabilities as bits. Raises KeyError for an unknown one."""
    return sum(_BITS[name] for name in names)


def loopback_up() -> None:
    """Switch `lo` on: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(end, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(end, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def confine_blank(bounding: Iterable[str]) -> None:
    """What holds for process 1 and all that it starts, and hinders it from nothing that it does
    before that: the bounding set.
    """
    wanted = bits(bounding)
    for number in range(max(_BITS.values()).bit_length()):
        if not wanted >> number & 1:
            try:
                linux.prctl(linux.PR_CAPBSET_DROP, number)
            except OSError:
                break  # a capability that this kernel does not have yet


def confine_agent(process: Mapping[str, Any], *, guarded: bool) -> None:
    """What process 1 gives up when it has its root.

    It keeps CAP_SYS_ADMIN of its user namespace, so that it can put the last filter on each
    command. That also keeps commands away from its memory and descriptors: ptrace(2) wants all the
    capabilities of what is looked at. `guarded` closes it to all but the host's root, too.
    """
    held = bits(process["capabilities"]["bounding"]) | _SYS_ADMIN
    linux.capset(held, held)
    if process["noNewPrivileges"]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0 if guarded else 1)


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
