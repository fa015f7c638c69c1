"""System calls that Python 3.11 has no names for. Each wrapper raises OSError with its errno.

Numbers are the kernel's: everything from 424 on is the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from typing import Any, Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_IDMAP: Final = 0x00100000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_OPENAT2: Final = 437
_PIDFD_GETFD: Final = 438
_MOUNT_SETATTR: Final = 442


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)
    return result


def _path(path: str | bytes | os.PathLike[str]) -> bytes:
    return os.fsencode(path)


def mount(
    source: str | bytes | os.PathLike[str],
    target: str | bytes | os.PathLike[str],
    kind: str = "",
    flags: int = 0,
    data: str | bytes = "",
) -> None:
    """mount(2). `data` holds the file system's own options."""
    text = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    _check(
        _libc().mount(
            ctypes.c_char_p(_path(source)),
            ctypes.c_char_p(_path(target)),
            ctypes.c_char_p(kind.encode() or None),
            ctypes.c_ulong(flags),
            ctypes.c_char_p(text or None),
        ),
        os.fsdecode(target),
    )


def umount(target: str | bytes | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc().umount2(ctypes.c_char_p(_path(target)), flags), os.fsdecode(target))


def unshare(flags: int) -> None:
    """unshare(2): leave namespaces of this process for new ones."""
    _check(_libc().unshare(flags))


def setns(descriptor: int, kind: int = 0) -> None:
    """setns(2): enter the namespace behind a descriptor."""
    _check(_libc().setns(descriptor, kind))


def syncfs(descriptor: int) -> None:
    """syncfs(2): wait until a file system has written everything to its disk."""
    _check(_libc().syncfs(ctypes.c_int(descriptor)), "")


def prctl(option: int, argument: int | bytes) -> None:
    """prctl(2) with one argument."""
    if isinstance(argument, bytes):
        _check(_libc().prctl(option, ctypes.c_char_p(argument), 0, 0, 0))
    else:
        _check(_libc().prctl(option, ctypes.c_ulong(argument), 0, 0, 0))


def _syscall(number: int, *arguments: Any) -> int:
    return _check(int(_libc().syscall(ctypes.c_long(number), *arguments)))


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2): `new` becomes the root of every process whose root is the present one."""
    _syscall(_PIVOT_ROOT[os.uname().machine], _path(new), _path(old))


def openat2(folder: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): a descriptor, close-on-exec."""
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve), 24)
    return _syscall(
        _OPENAT2,
        ctypes.c_int(folder),
        ctypes.c_char_p(_path(path)),
        ctypes.byref(how),
        ctypes.c_size_t(24),
    )


def open_tree(folder: int, path: str | bytes | os.PathLike[str], flags: int) -> int:
    """open_tree(2): with OPEN_TREE_CLONE a detached copy of a mount, as a descriptor."""
    return _syscall(
        _OPEN_TREE, ctypes.c_int(folder), ctypes.c_char_p(_path(path)), ctypes.c_uint(flags)
    )


def move_mount(
    source: int,
    source_path: str | bytes | os.PathLike[str],
    target: int,
    target_path: str | bytes | os.PathLike[str],
    flags: int,
) -> None:
    """move_mount(2): attach a detached mount."""
    _syscall(
        _MOVE_MOUNT,
        ctypes.c_int(source),
        ctypes.c_char_p(_path(source_path)),
        ctypes.c_int(target),
        ctypes.c_char_p(_path(target_path)),
        ctypes.c_uint(flags),
    )


def mount_setattr(
    descriptor: int, *, flags: int = AT_EMPTY_PATH, set: int = 0, userns: int = 0
) -> None:
    """mount_setattr(2) on a mount's descriptor; `userns` is the id map of MOUNT_ATTR_IDMAP."""
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", set, 0, 0, userns), 32)
    _syscall(
        _MOUNT_SETATTR,
        ctypes.c_int(descriptor),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(32),
    )


def pidfd_getfd(process: int, descriptor: int) -> int:
    """pidfd_getfd(2): a copy of another process's descriptor, close-on-exec."""
    return _syscall(_PIDFD_GETFD, ctypes.c_int(process), ctypes.c_int(descriptor), ctypes.c_uint(0))
