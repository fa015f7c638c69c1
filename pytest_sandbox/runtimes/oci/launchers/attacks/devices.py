"""Attacks on devices, and on what /proc and /sys give away or let be changed."""

# pathlib would stand between an attack and its system calls.
# ruff: noqa: PTH101, PTH108, PTH112, PTH116, PTH208

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import Final

from pytest_sandbox.runtimes.oci.launchers.attacks.calls import call, first, refused
from pytest_sandbox.runtimes.oci.launchers.attacks.mounts import new_folder, remove_folder
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside
from pytest_sandbox.runtimes.oci.launchers.attacks.processes import read

_HARMLESS: Final = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}
"""null, zero, full, random, urandom, tty, console (a terminal of the sandbox), ptmx."""
_TERMINALS: Final = range(136, 144)
_CHARACTER: Final = {
    "mem": (1, 1),
    "port": (1, 4),
    "kmsg": (1, 11),
    "tty0": (4, 0),
    "tun": (10, 200),
    "fuse": (10, 229),
    "snapshot": (10, 231),
    "kvm": (10, 232),
    "device mapper": (10, 236),
    "loop control": (10, 237),
    "vhost-vsock": (10, 241),
    "cpu/0/msr": (202, 0),
}
_BLOCK: Final = {"loop0": (7, 0), "sda": (8, 0)}
_SECRET: Final = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/vmallocinfo",
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
    "/sys/kernel/security",
)
_SETTINGS: Final = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi")
_SINGLE: Final = ("/proc/sysrq-trigger", "/proc/mtrr", "/proc/timer_stats", "/proc/latency_stats")
_MOST: Final = 1500
_DEEP: Final = 6


def _open(path: str, flags: int) -> OSError | None:
    """Open and close; the error."""
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error
    return None


def _mknod(_: Outside) -> str | None:
    """Device nodes that are made here, of disks and memory above all, cannot be opened."""
    wanted = [(name, stat.S_IFCHR, os.makedev(*node)) for name, node in _CHARACTER.items()]
    wanted += [(name, stat.S_IFBLK, os.makedev(*node)) for name, node in _BLOCK.items()]
    for line in read("/proc/partitions").decode().splitlines()[2:10]:
        major, minor, _size, disk = line.split()
        wanted.append((disk, stat.S_IFBLK, os.makedev(int(major), int(minor))))
    try:
        folder = new_folder()
    except OSError:
        return None
    found: list[str | None] = []
    for name, kind, device in wanted:
        path = f"{folder}/node"
        try:
            os.mknod(path, kind | 0o600, device)
        except OSError:
            continue
        error = _open(path, os.O_RDONLY)
        if error is None or error.errno not in (errno.EPERM, errno.EACCES):
            found.append(f"a node of {name} reaches its device")
        os.unlink(path)
    remove_folder(folder)
    return first(found)


def _nodes(_: Outside) -> str | None:
    """Nodes below /dev: none but the harmless ones."""
    found: list[str | None] = []
    for folder, _names, files in os.walk("/dev"):
        for name in files:
            path = f"{folder}/{name}"
            with contextlib.suppress(OSError):
                node = os.lstat(path)
                number = os.major(node.st_rdev), os.minor(node.st_rdev)
                is_device = stat.S_ISBLK(node.st_mode) or stat.S_ISCHR(node.st_mode)
                harmless = number in _HARMLESS or number[0] in _TERMINALS
                if is_device and not harmless and _open(path, os.O_RDONLY) is None:
                    found.append(f"{path} ({number[0]}:{number[1]}) can be opened")
    return first(found)


def _owner(_: Outside) -> str | None:
    """Nodes that are bound in from the machine keep their mode, owner and times."""
    found: list[str | None] = []
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        path = f"/dev/{name}"
        with contextlib.suppress(OSError):
            node = os.stat(path)
            if node.st_dev == os.stat("/dev").st_dev:
                continue  # the sandbox's own
            with contextlib.suppress(OSError):
                os.chmod(path, stat.S_IMODE(node.st_mode))
                found.append(f"the mode of the machine's {path} can be changed")
            with contextlib.suppress(OSError):
                os.utime(path, ns=(node.st_atime_ns, node.st_mtime_ns))
                found.append(f"the times of the machine's {path} can be changed")
    return first(found)


def _masked(_: Outside) -> str | None:
    """What tells of the machine is empty or not there."""
    found: list[str | None] = []
    for path in _SECRET:
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                if os.listdir(path):
                    found.append(f"{path} is not empty")
            elif read(path):
                found.append(f"{path} can be read")
    return first(found)


def _settings(_: Outside) -> str | None:
    """Nothing of /proc that belongs to the machine can be opened for writing."""
    found = [path for path in _SINGLE if _open(path, os.O_WRONLY) is None]
    for folder in _SETTINGS:
        found += _writable(folder, 2 * _MOST)
    return _tell(found)


def _sys(_: Outside) -> str | None:
    """Nothing of /sys can be opened for writing (control groups are an attack of their own)."""
    found: list[str] = []
    for folder in ("block", "bus", "class", "devices", "fs", "kernel", "module", "power"):
        found += _writable(f"/sys/{folder}", _MOST)
    return _tell(found)


def _writable(start: str, most: int) -> list[str]:
    """Files below a folder that can be opened for writing, of the first so many."""
    found: list[str] = []
    tried = 0
    for folder, names, files in os.walk(start):
        if folder.count("/") >= _DEEP or folder == "/sys/fs/cgroup":
            names.clear()
        if folder == "/sys/fs":
            names[:] = [name for name in names if name != "cgroup"]
        for name in files:
            path = f"{folder}/{name}"
            with contextlib.suppress(OSError):
                if not os.lstat(path).st_mode & 0o222:
                    continue
            tried += 1
            if _open(path, os.O_WRONLY) is None:
                found.append(path)
        if tried >= most:
            break
    return found


def _tell(found: list[str]) -> str | None:
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"can be written: {', '.join(found[:8])}{more}" if found else None


def _kernel_log(_: Outside) -> str | None:
    """The kernel's messages, by syslog(2), by /dev/kmsg and /proc/kmsg."""
    found: list[str | None] = []
    buffer = ctypes.create_string_buffer(4096)
    if call("syslog", 3, buffer, 4096) >= 0 or call("syslog", 10, None, 0) >= 0:
        found.append("syslog(2) gives the kernel's messages")
    for path in ("/dev/kmsg", "/proc/kmsg"):
        error = _open(path, os.O_RDONLY)
        if error is None and read(path):
            found.append(f"{path} can be read")
        elif error is not None and not refused(error):
            found.append(f"{path}: {error.strerror}")
    return first(found)


def _terminal(_: Outside) -> str | None:
    """A terminal of whoever started the sandbox could be typed into (TIOCSTI)."""
    if _open("/dev/tty", os.O_RDWR) is None:
        return "there is a controlling terminal"
    return None


ATTACKS: Final = (
    Attack("mknod", "nodes of disks and memory are made and opened", _mknod),
    Attack("device-nodes", "devices below /dev", _nodes),
    Attack("device-owner", "mode and times of the machine's /dev/null", _owner),
    Attack("masked", "kcore, keys, firmware, tracing and their like", _masked),
    Attack("sysctl", "writing to /proc/sys, sysrq-trigger, irq", _settings),
    Attack("sysfs", "writing to /sys", _sys),
    Attack("kernel-log", "messages of the kernel", _kernel_log),
    Attack("terminal", "a controlling terminal", _terminal),
)
