"""What a blank does, as a table: it becomes the root of its namespaces, makes the system's mounts
before it is known which root they will be in, and gives up what nothing in a sandbox may have.

The mounts are made below a stage (a tmpfs of the blank's own mount namespace) and moved into the
root later. The stage holds nothing of an image, so plain paths are safe here.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.oci import linux
from pytest_sandbox.runtimes.oci.launchers.direct import privileges
from pytest_sandbox.runtimes.oci.launchers.direct.tables import Table, capability_sets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

HERE: Final = -100  # AT_FDCWD
GROUP: Final = 5
"""Descriptor of process 1: the sandbox's folder in the v2 tree, where there is one."""
SCORE: Final = 20
"""Its own oom_score_adj (proc(5)), which its commands inherit."""
FIRST_GROUP: Final = (140, 141)
"""The folder of the first command's group, and the file that kills it; others follow. They are
above what process 1 gets for MOST_COMMANDS at once.
"""
FILES: Final = "files"
"""The folder of the stage for small files of ours, like /etc/hosts."""
_FLAGS: Final = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "relatime": linux.MS_RELATIME,
    "strictatime": linux.MS_STRICTATIME,
    "rw": 0,
}
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
_QUIET: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Staging(NamedTuple):
    """The table of all blanks of a profile. `either` are paths that are hidden, each by one of two
    rows, or nothing is there.
    """

    table: Table
    either: tuple[tuple[str, int], ...]

    def check(self, results: Sequence[int | None]) -> None:
        """Raises OSError for a path that was not masked. (The rest says the table.)"""
        for path, row in self.either:
            gave = results[row], results[row + 1]
            if 0 not in gave and gave != (-errno.ENOENT, -errno.ENOENT):
                raise OSError(errno.EIO, "it cannot be masked", path)


def stage(place: str, profile: Profile, *, grouped: bool) -> Staging:
    """All of it; `place` is where the tmpfs is put, `grouped` says that there is a GROUP."""
    table = Table()
    _become_root(table)
    if profile.inheritable:
        held = capability_sets(table, privileges.EVERY, profile.inheritable)
        table.call("capset", *held)
    table.call("unshare", linux.CLONE_NEWCGROUP)
    flags = linux.MS_NOSUID | linux.MS_NODEV
    _mount(table, ("tmpfs", place, "tmpfs"), flags, "mode=0755,size=1m")
    for name in ("root", FILES):
        _folder(table, f"{place}/{name}")
    # The sandbox may write them, and fill what they lie on.
    _mount(table, ("tmpfs", f"{place}/{FILES}", "tmpfs"), flags, "mode=0755,size=1m,nr_inodes=64")
    bound = any(entry["type"] == "bind" for entry in profile.mounts)
    for entry in profile.mounts:
        _system_mount(table, place, entry, profile, bound=bound)
    for name, value in profile.sysctl.items():
        _write(table, f"{place}/proc/sys/{name.replace('.', '/')}", value.encode())
    for path in profile.readonly:
        _read_only(table, place + path)
    either = tuple(_mask(table, place, place + path) for path in profile.masked)
    if profile.network:
        _loopback_up(table)
    for number in privileges.unwanted(profile.bounding):
        table.call("prctl", linux.PR_CAPBSET_DROP, number, may=(errno.EINVAL,))
    score = table.call("openat", HERE, _b(f"{place}/proc/self/oom_score_adj"), os.O_WRONLY)
    _keep(table, score, SCORE)
    if grouped:
        make_group(table, "c1", FIRST_GROUP)
    return Staging(table, either)


def make_group(table: Table, name: str, kept: tuple[int, int]) -> None:
    """A group for commands, and its descriptors."""
    table.call("mkdirat", GROUP, _b(name), 0o755, may=(errno.EEXIST,))
    folder = table.call("openat", GROUP, _b(name), _FOLDER)
    _keep(table, folder, kept[0])
    kill = table.call("openat", GROUP, _b(f"{name}/cgroup.kill"), os.O_WRONLY)
    _keep(table, kill, kept[1])


def _keep(table: Table, descriptor: int, number: int) -> None:
    """Have a descriptor under a number that is known outside."""
    table.call("dup3", descriptor, number, os.O_CLOEXEC)
    table.call("close", descriptor)


def _become_root(table: Table) -> None:
    table.call("setresgid", 0, 0, 0)
    table.call("setresuid", 0, 0, 0)
    table.call("setgroups", 0, 0)
    # The change of ids takes it back. Its maker looks whether the supervisor lives after this.
    table.call("prctl", linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    # The change of ids gave its files in /proc to the host's root.
    table.call("prctl", linux.PR_SET_DUMPABLE, 1)
    table.call("prctl", linux.PR_SET_NAME, b"sandbox-init")
    table.call("umask", 0)


def tops(profile: Profile) -> list[str]:
    """The mounts that are moved into the root; what lies in them goes along."""
    found: list[str] = []
    for entry in profile.mounts:
        path = entry["destination"]
        if not any(path.startswith(f"{top}/") for top in found):
            found.append(path)
    return found


def split(options: list[str]) -> tuple[int, str]:
    """The flags of mount(2), and what is left for the file system."""
    flags = sum(_FLAGS[option] for option in options if option in _FLAGS)
    return flags, ",".join(option for option in options if option not in _FLAGS)


def _b(text: str) -> bytes:
    return os.fsencode(text)


def _mount(table: Table, what: tuple[str, str, str], flags: int = 0, data: str = "") -> None:
    """`what` is source, target and kind."""
    table.call("mount", *map(_b, what), flags, _b(data) if data else 0)


def _folder(table: Table, path: str) -> None:
    table.call("mkdirat", HERE, _b(path), 0o755, may=(errno.EEXIST,))


def _write(table: Table, path: str, data: bytes) -> None:
    file = table.call("openat", HERE, _b(path), os.O_WRONLY | os.O_CLOEXEC)
    table.call("write", file, data, len(data))
    table.call("close", file)


def _system_mount(
    table: Table, place: str, entry: Mapping[str, Any], profile: Profile, *, bound: bool
) -> None:
    target, kind = place + entry["destination"], entry["type"]
    _folder(table, target)
    if kind == "cgroup":
        _control_groups(table, target, profile, bound=bound)
        return
    if kind == "bind":
        _host_sys(table, target)
        return
    flags, data = split([one for one in entry["options"] if one != "newinstance"])
    if kind == "devpts":
        data = f"newinstance,{data}"
    _mount(table, (entry["source"], target, kind), flags, data)
    if entry["destination"] == "/dev":
        _devices(table, target)


def _host_sys(table: Table, target: str) -> None:
    """The host's /sys, read-only all the way down."""
    _mount(table, ("/sys", target, ""), linux.MS_BIND | linux.MS_REC)
    opened = table.call("openat", HERE, _b(target), _FOLDER)
    wanted = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    attributes = table.place(struct.pack("=QQQQ", wanted | linux.MOUNT_ATTR_NOEXEC, 0, 0, 0))
    deep = linux.AT_EMPTY_PATH | linux.AT_RECURSIVE
    table.call("mount_setattr", opened, b"", deep, attributes, 32)
    table.call("close", opened)


def _devices(table: Table, folder: str) -> None:
    """The host's own harmless devices: a user namespace cannot make any."""
    for name in _DEVICES:
        target = f"{folder}/{name}"
        table.call("mknodat", HERE, _b(target), stat.S_IFREG | 0o666, 0)
        _mount(table, (f"/dev/{name}", target, ""), linux.MS_BIND)
    for name, target in _LINKS.items():
        table.call("symlinkat", _b(target), HERE, _b(f"{folder}/{name}"))


def _control_groups(table: Table, target: str, profile: Profile, *, bound: bool) -> None:
    read_only = _QUIET | linux.MS_RDONLY
    if profile.unified == ".":
        if bound:
            # The host's own came with its /sys: no file system is mounted onto itself.
            _mount(table, ("tmpfs", target, "tmpfs"), read_only, "size=4k")
        _mount(table, ("cgroup2", target, "cgroup2"), read_only)
        return
    _mount(table, ("tmpfs", target, "tmpfs"), _QUIET, "mode=0755,size=64k")
    for name, options in profile.hierarchies:
        folder = f"{target}/{name}"
        _folder(table, folder)
        _mount(table, ("cgroup", folder, "cgroup"), read_only, options)
        for alias in options.split(","):
            if alias != name:
                table.call("symlinkat", _b(name), HERE, _b(f"{target}/{alias}"))
    if profile.unified:
        _folder(table, f"{target}/unified")
        _mount(table, ("cgroup2", f"{target}/unified", "cgroup2"), read_only)
    _mount(table, ("tmpfs", target, ""), linux.MS_REMOUNT | linux.MS_BIND | read_only)


def _read_only(table: Table, path: str) -> None:
    gone = (errno.ENOENT,)
    table.call("mount", _b(path), _b(path), b"", linux.MS_BIND | linux.MS_REC, 0, may=gone)
    # A remount in a user namespace has to repeat what is locked.
    flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | _QUIET
    table.call("mount", _b(path), _b(path), b"", flags, 0, may=gone)


def _mask(table: Table, place: str, path: str) -> tuple[str, int]:
    """Hide a folder, and hide a file: which one it is shows when that is tried."""
    first = len(table.calls)
    wrong = (errno.ENOENT, errno.ENOTDIR)
    empty = _b("size=0k,nr_inodes=2")
    flags = linux.MS_RDONLY | _QUIET
    table.call("mount", b"tmpfs", _b(path), b"tmpfs", flags, empty, may=wrong)
    table.call("mount", _b(f"{place}/dev/null"), _b(path), b"", linux.MS_BIND, 0, may=wrong)
    return path, first


def _loopback_up(table: Table) -> None:
    """Switch `lo` on: netdevice(7)."""
    internet, datagram, set_flags, up = 2, 2, 0x8914, 1
    end = table.call("socket", internet, datagram | os.O_CLOEXEC, 0)
    table.call("ioctl", end, set_flags, table.place(struct.pack("16sh22x", b"lo", up)))
    table.call("close", end)
