"""Attacks on control groups, limits and privileges."""

# pathlib would stand between an attack and its system calls.
# ruff: noqa: PTH102, PTH106, PTH110

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

from pytest_sandbox.runtimes.oci.launchers.attacks.calls import first
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside
from pytest_sandbox.runtimes.oci.launchers.attacks.processes import read

_GROUPS: Final = "/sys/fs/cgroup"
_FOLDERS: Final = 200
_DEFAULT: Final = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
"""The 14 capabilities: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap (capability.h).
"""


def _groups(_: Outside) -> str | None:
    """No file of a control group can be opened for writing, no group made, none left."""
    found: list[str] = []
    for count, (folder, names, files) in enumerate(os.walk(_GROUPS)):
        if count >= _FOLDERS:
            names.clear()
        with contextlib.suppress(OSError):
            os.mkdir(f"{folder}/attack")
            if os.path.exists(f"{folder}/attack/cgroup.procs"):
                found.append(f"{folder} takes a new group")
            os.rmdir(f"{folder}/attack")
        for name in files:
            with contextlib.suppress(OSError):
                os.close(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC))
                found.append(f"{folder}/{name}")
    return f"can be written: {', '.join(found[:8])}" if found else None


def _group_view(_: Outside) -> str | None:
    """The groups of others, or the path of one's own on the machine, are not shown."""
    found: list[str | None] = []
    for line in read("/proc/self/cgroup").decode(errors="replace").splitlines():
        path = line.split(":", 2)[-1]
        # A command's own group, below the root of the sandbox's groups, says nothing.
        if path != "/" and not path.removeprefix("/c").isdigit():
            found.append(f"/proc/self/cgroup shows {line}")
    return first(found[:1])


def _memory_score(_: Outside) -> str | None:
    """A process that the kernel's memory killer spares would let others die for it."""
    try:
        os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1")
    except OSError:
        return None
    return "oom_score_adj can be lowered below 0"


def _limits(_: Outside) -> str | None:
    """Hard limits cannot be raised, priorities neither."""
    found: list[str | None] = []
    for name in ("NOFILE", "NPROC", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING"):
        kind = getattr(resource, f"RLIMIT_{name}")
        soft, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            continue
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft, hard + 1))
            found.append(f"RLIMIT_{name} can be raised")
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        found.append("real-time scheduling can be had")
    with contextlib.suppress(OSError):
        os.nice(-1)
        found.append("the priority can be raised")
    return first(found)


def _status(name: str) -> str:
    """A line of this process's status."""
    for line in read("/proc/self/status").decode().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""


def _capabilities(_: Outside) -> str | None:
    """No set holds more than the 14 capabilities; none of them is the machine's."""
    found: list[str | None] = []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        held = int(_status(name) or "0", 16)
        extra = {number for number in range(64) if held >> number & 1} - _DEFAULT
        if extra:
            found.append(f"{name} holds the capabilities {sorted(extra)}")
    return first(found)


def _ids(_: Outside) -> str | None:
    """Root of the sandbox is not the machine's, and other ids cannot be mapped."""
    found: list[str | None] = []
    for name in ("uid_map", "gid_map"):
        for line in read(f"/proc/self/{name}").decode().splitlines():
            inside, outside, size = map(int, line.split())
            if inside == outside and size > 1 << 31:
                found.append(f"{name}: every id is the machine's own")
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(descriptor, b"0 0 1\n")
            found.append(f"{name} can be written")
    return first(found)


def _filter(_: Outside) -> str | None:
    """A filter of system calls is on, in the mode with a program."""
    return None if _status("Seccomp") == "2" else "there is no filter of system calls"


ATTACKS: Final = (
    Attack("cgroups", "writing to control groups", _groups),
    Attack("cgroup-view", "the machine's groups are shown", _group_view),
    Attack("oom-score", "oom_score_adj lowered", _memory_score),
    Attack("rlimits", "hard limits and priorities raised", _limits),
    Attack("capabilities", "more than the 14 capabilities", _capabilities),
    Attack("ids", "root is the machine's; ids mapped anew", _ids),
    Attack("filter", "no filter of system calls", _filter),
)
