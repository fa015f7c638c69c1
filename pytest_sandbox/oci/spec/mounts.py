"""Mounts of a sandbox: the system's own, the engine's files, volumes, tmpfs and the caller's binds.

Every set of options here is one that runc and crun accept in a user namespace.
"""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.spec.process import absolute

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TTY_GROUP: Final = 5
"""The group of terminals, where it is mapped."""
SHM_SIZE: Final = 64 << 20

MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_FORBIDDEN: Final = ("/proc", "/sys")
_SYSTEM: Final = ("/dev", "/proc", "/sys")
"""Mounted by the runtime: mount points below them are its own to make."""


class Bind(NamedTuple):
    """A folder or file of the host at `target`.

    `locked` are the options that the source's file system has and a user namespace may not take
    away; a mount that lacks them is refused by the kernel.
    """

    source: str
    target: str
    read_only: bool = True
    folder: bool = True
    locked: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: str | os.PathLike[str], target: str, *, read_only: bool = True) -> Bind:
        """A Bind of what is there now. A relative source counts from the current folder. Raises
        UsageError where it is missing.
        """
        path = os.path.abspath(os.fspath(source))  # noqa: PTH100 - keeps symlinks, as a mount does
        try:
            folder = os.path.isdir(path)  # noqa: PTH112
            flags = os.statvfs(path).f_flag
        except OSError as error:
            msg = f"cannot mount {path}: {error.strerror}"
            raise UsageError(msg, next_step="name a file or folder that is there") from error
        names = {os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec"}
        locked = tuple(name for flag, name in names.items() if flags & flag)
        if flags & os.ST_RDONLY and not read_only:
            msg = f"{path} lies on a read-only file system and cannot be mounted writable"
            raise UsageError(msg, next_step="mount it with :ro")
        return cls(path, target, read_only, folder, locked)

    def entry(self) -> dict[str, Any]:
        """The `mounts` entry of the runtime spec."""
        options = ["rbind", "rprivate", "ro" if self.read_only else "rw", *self.locked]
        return _mount(self.target, "bind", self.source, *options)


def check_target(target: str) -> str:
    """The normal form of a mount's target. Raises UsageError for a relative one, for / and for
    what lies in /proc or /sys.
    """
    if not target.startswith("/"):
        msg = f"the mount target {target!r} is not absolute"
        raise UsageError(msg, next_step="write it from / on")
    normal = absolute(target)
    if normal == "/" or under(normal, _FORBIDDEN):
        msg = f"{normal} cannot be a mount target"
        raise UsageError(msg, next_step="choose a folder of its own, like /mnt")
    return normal


def under(path: str, folders: Iterable[str]) -> bool:
    """Whether a normal path is one of `folders` or lies in one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def made_by_runtime(path: str, targets: Iterable[str]) -> bool:
    """Whether a mount point lies in another mount (the system's or one of `targets`), so that only
    the runtime can make it.
    """
    return under(path, _SYSTEM) or any(path != t and under(path, [t]) for t in targets)


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def system_mounts(*, own_network: bool, tty_group: bool) -> list[dict[str, Any]]:
    """proc, dev, devpts, shm, mqueue, sysfs and cgroup, as Docker has them (no /run).

    A new sysfs needs a network namespace of its own; without one /sys is the host's, read-only
    all the way down. `tty_group`: group 5 is mapped, and terminals may have it.
    """
    quiet = ("nosuid", "noexec", "nodev")
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if tty_group:
        terminals.append(f"gid={TTY_GROUP}")
    system = (
        _mount("/sys", "sysfs", "sysfs", *quiet, "ro")
        if own_network
        else _mount("/sys", "bind", "/sys", "rbind", "rprivate", *quiet, "rro")
    )
    return [
        _mount("/proc", "proc", "proc", *quiet),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", *terminals),
        system,
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *quiet, "relatime", "ro"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        _mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", f"size={SHM_SIZE >> 10}k"),
    ]


def volume_mounts(root: str, volumes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Volumes under a read-only root: the root's own folders, bound onto themselves, stay
    writable. `volumes` is target -> the same folder without any link (prepare_root resolved it).
    """
    return [
        _mount(real, "bind", posixpath.join(root, real.lstrip("/")), "rbind", "rprivate", "rw")
        for real in dict.fromkeys(volumes.values())
    ]


def tmpfs_mount(target: str, size: int) -> dict[str, Any]:
    """An empty file system in memory, `size` bytes, for everybody. Programs may run from it."""
    if size <= 0:
        msg = f"a tmpfs of {size} bytes at {target}"
        raise UsageError(msg, next_step="give it a size, like 64m")
    options = ("nosuid", "nodev", "mode=1777", f"size={size}")
    return _mount(target, "tmpfs", "tmpfs", *options)


def assemble(
    system: Sequence[dict[str, Any]],
    engine: Sequence[dict[str, Any]],
    caller: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """All mounts in their order: the system's, then the engine's and the caller's, outer folders
    first. The caller's mount takes the place of another at the same target (and one at /dev of
    everything below it). Raises UsageError for a target that the caller names twice.
    """
    targets = [mount["destination"] for mount in caller]
    for target in targets:
        if targets.count(target) > 1:
            msg = f"two mounts at {target}"
            raise UsageError(msg, next_step="leave one of them out")
    devices = ["/dev"] if "/dev" in targets else []
    kept = [
        mount
        for mount in system
        if mount["destination"] not in targets and not under(mount["destination"], devices)
    ]
    inner = [mount for mount in engine if mount["destination"] not in targets] + list(caller)
    return kept + sorted(inner, key=lambda mount: len(mount["destination"].split("/")))
