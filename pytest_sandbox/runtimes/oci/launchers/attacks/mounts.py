"""Attacks on the mount table, the roots and the namespaces."""

# pathlib would stand between an attack and its system calls.
# ruff: noqa: PTH102, PTH106, PTH116, PTH123

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes.oci.launchers.attacks.calls import call, first, judge, reached
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside
from pytest_sandbox.runtimes.oci.launchers.attacks.processes import identity, top

if TYPE_CHECKING:
    from collections.abc import Callable

_RDONLY, _REMOUNT, _BIND, _MOVE, _REC = 1, 32, 4096, 8192, 16384
_SHARED, _PRIVATE = 1 << 20, 1 << 18
_DETACH: Final = 2
_HERE: Final = -100
_NEW: Final = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
_OPEN_TREE_CLONE: Final = 1


def mount_points() -> list[str]:
    """Where the sandbox's mounts are, each path once."""
    found: list[str] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            found.append(fields[4].replace("\\040", " "))
    return list(dict.fromkeys(found))


def new_folder() -> str:
    """An empty folder of this attack's own. Raises OSError where nothing can be written."""
    last: OSError | None = None
    for place in ("/", "/tmp", "/dev/shm", "/run", "/dev"):
        path = f"{place.rstrip('/')}/.attack-{os.getpid()}"
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            last = error
        else:
            return path
    raise last or OSError


def remove_folder(path: str) -> None:
    """Remove an empty folder; nothing where something hinders it."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _mount(_: Outside) -> str | None:
    found = [
        reached("mount", kind, b"/dev", kind, 0, None)
        for kind in (b"tmpfs", b"proc", b"sysfs", b"cgroup", b"cgroup2", b"devpts", b"mqueue")
    ]
    found.append(reached("mount", b"/", b"/dev", None, _BIND | _REC, None))
    found.append(reached("mount", b"none", b"/", None, _REC | _SHARED, None))
    found.append(reached("mount", b"none", b"/", None, _REC | _PRIVATE, None))
    return first(found)


def _remount(_: Outside) -> str | None:
    """Every mount anew, writable; the file systems of the kernel themselves, too."""
    wanted = [(path, _REMOUNT | _BIND) for path in mount_points()]
    wanted += [("/proc", _REMOUNT), ("/sys", _REMOUNT)]
    found = []
    for path, flags in wanted:
        result = call("mount", b"none", os.fsencode(path), None, flags, None)
        found.append(judge(f"remount of {path}", result))
    return first(found)


def _over_masks(_: Outside) -> str | None:
    """A bind over what is masked or read-only; a mount moved away from over it."""
    found = []
    for path in mount_points():
        place = os.fsencode(path)
        found.append(judge(f"bind over {path}", call("mount", b"/", place, None, _BIND, None)))
        found.append(judge(f"move of {path}", call("mount", place, b"/dev", None, _MOVE, None)))
    return first(found)


def _unmount(_: Outside) -> str | None:
    """What lies over masked paths, the root's own folders, and the root are unmounted."""
    paths = mount_points()[::-1]
    return first([judge(f"umount of {p}", call("umount2", os.fsencode(p), _DETACH)) for p in paths])


def _mount_api(_: Outside) -> str | None:
    """The calls of the newer interface."""
    attributes = (ctypes.c_uint64 * 4)(0, 0, 0, 0)
    return first(
        [
            reached("fsopen", b"tmpfs", 0),
            reached("fspick", _HERE, b"/proc", 0),
            reached("open_tree", _HERE, b"/", _OPEN_TREE_CLONE),
            reached("mount_setattr", _HERE, b"/", 0, attributes, 32),
            reached("move_mount", _HERE, b"/proc", _HERE, b"/dev", 0),
        ]
    )


def _unshare(_: Outside) -> str | None:
    """New namespaces by unshare(2), clone(2) and clone3(2), a user namespace above all."""
    found: list[str | None] = []
    for name, flag in _NEW.items():
        found.append(_in_child(partial(_unshared, name, flag)))
        if flag != _NEW["time"]:  # in clone(2) these bits are the signal
            found.append(judge(f"clone into a new {name} namespace", _cloned(flag)))
    arguments = struct.pack("=11Q", _NEW["user"], 0, 0, 0, signal.SIGCHLD, *[0] * 6)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    result = call("clone3", buffer, 88)
    _leave_child(result)
    found.append(judge("clone3 into a new user namespace", result))
    return first(found)


def _unshared(name: str, flag: int) -> str | None:
    return judge(f"unshare of the {name} namespace", call("unshare", flag))


def _cloned(flag: int) -> int:
    # No stack of its own: the child goes on with a copy of this one, as after a fork.
    result = call("clone", flag | signal.SIGCHLD, 0, 0, 0, 0)
    _leave_child(result)
    return result


def _leave_child(result: int) -> None:
    if result == 0:
        os._exit(0)
    if result > 0:
        os.waitpid(result, 0)


def _in_child(run: Callable[[], str | None]) -> str | None:
    """What a function gives that would change this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, (run() or "").encode())
        finally:
            os._exit(0)
    os.close(writer)
    text = os.read(reader, 4096).decode()
    os.close(reader)
    os.waitpid(child, 0)
    return text or None


def _setns(_: Outside) -> str | None:
    """Namespaces of pid 1, and this process's own anew, which only privilege may enter."""
    found: list[str | None] = []
    for who in ("1", "self"):
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
            path = f"/proc/{who}/ns/{kind}"
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            found.append(_in_child(partial(_entered, path, handle, 0)))
            os.close(handle)
    handle = call("pidfd_open", 1, 0)
    if handle >= 0:
        kinds = _NEW["mount"] | _NEW["net"]
        found.append(_in_child(partial(_entered, "by a pidfd", handle, kinds)))
    return first(found)


def _entered(which: str, handle: int, kinds: int) -> str | None:
    return judge(f"setns {which}", call("setns", handle, kinds))


def _pivot_root(_: Outside) -> str | None:
    return first([reached("pivot_root", b".", b"."), reached("pivot_root", b"/dev", b"/dev")])


def _chroot(_: Outside) -> str | None:
    """The old way out: a folder held open outside of a new root, and up from there."""
    before = identity("/")
    try:
        folder = new_folder()
    except OSError:
        folder = "/proc"
    held = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chroot(folder)
    except PermissionError:
        remove_folder(folder)
        return None
    os.fchdir(held)
    for _step in range(64):
        os.chdir("..")
    os.chroot(".")
    after = identity("/")
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return None if after == before else "the way up from the sandbox's root leads out of it"


def _up(_: Outside) -> str | None:
    """`..` of the root, of every mount, and of the folder that a command begins in."""
    found: list[str | None] = []
    for path in [".", *mount_points()]:
        with contextlib.suppress(OSError):
            if top(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) != identity("/"):
                found.append(f"the way up from {path} leads out")
    return first(found)


def _handles(_: Outside) -> str | None:
    """open_by_handle_at(2) opens a file of any file system by its number."""
    handle = ctypes.create_string_buffer(128)
    struct.pack_into("=I", handle, 0, 120)
    mount = ctypes.c_int(0)
    call("name_to_handle_at", _HERE, b"/", handle, ctypes.byref(mount), 0)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    found = [reached("open_by_handle_at", root, handle, os.O_RDONLY)]
    # inode 2, generation 0: the root of most file systems of disks
    struct.pack_into("=IiII", handle, 0, 8, 1, 2, 0)
    found.append(reached("open_by_handle_at", root, handle, os.O_RDONLY))
    return first(found)


_INITIAL: Final = {"user": 0xEFFFFFFD, "pid": 0xEFFFFFFC, "ipc": 0xEFFFFFFF, "uts": 0xEFFFFFFE}
_INITIAL_CGROUP: Final = 0xEFFFFFFB


def _initial(_: Outside) -> str | None:
    """The machine's first namespaces have fixed numbers: none of them is the sandbox's."""
    found: list[str | None] = []
    for kind, number in {**_INITIAL, "cgroup": _INITIAL_CGROUP}.items():
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"/proc/self/ns/{kind}").st_ino == number:
                found.append(f"the {kind} namespace is the machine's own")
    return first(found)


ATTACKS: Final = (
    Attack("mount", "mount of tmpfs, proc, sysfs, cgroup; bind; propagation", _mount),
    Attack("remount", "remount of everything, writable", _remount),
    Attack("over-masks", "bind over masks, mounts moved away", _over_masks),
    Attack("unmount", "masks and folders unmounted", _unmount),
    Attack("mount-api", "fsopen, open_tree, move_mount, mount_setattr", _mount_api),
    Attack("unshare", "new namespaces by unshare, clone, clone3", _unshare),
    Attack("setns", "namespaces of others entered", _setns),
    Attack("pivot-root", "another root by pivot_root", _pivot_root),
    Attack("chroot", "out of the root by chroot and ..", _chroot),
    Attack("dotdot", "the way up from every mount", _up),
    Attack("handles", "open_by_handle_at", _handles),
    Attack("namespaces", "a namespace is the machine's own", _initial),
)
