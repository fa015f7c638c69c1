"""System calls that Python 3.11 has no names for. Each wrapper raises OSError with its errno.

Numbers are the kernel's: everything from 424 on is the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2

CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
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
MOUNT_ATTR_NOEXEC: Final = 8
MOUNT_ATTR_IDMAP: Final = 0x00100000

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION: Final = 0x20080522
_SIGNALFD4: Final = {"x86_64": 289, "aarch64": 74}
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_CLONE3: Final = 435
_CLOSE_RANGE: Final = 436
_OPENAT2: Final = 437
_PIDFD_GETFD: Final = 438
_MOUNT_SETATTR: Final = 442


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _held_libc() -> Any:
    """The same, but calls keep the interpreter's lock: for what comes back in a child."""
    return ctypes.PyDLL(None, use_errno=True)


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


def detached_mount(
    kind: str, options: Iterable[tuple[str, str | None]], attributes: int = 0
) -> int:
    """fsopen(2), fsconfig(2) and fsmount(2): a new mount that is nowhere yet, as a descriptor.

    `options` are in their order; one without a value is a flag. `attributes` are MOUNT_ATTR_*.
    """
    context = _syscall(_FSOPEN, ctypes.c_char_p(kind.encode()), ctypes.c_uint(1))
    try:
        for name, value in options:
            text = None if value is None else value.encode()
            command = 0 if value is None else 1  # FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING
            _configure(context, command, name.encode(), text)
        _configure(context, 6, None, None)  # FSCONFIG_CMD_CREATE
        return _syscall(
            _FSMOUNT, ctypes.c_int(context), ctypes.c_uint(1), ctypes.c_uint(attributes)
        )
    finally:
        os.close(context)


def _configure(context: int, command: int, name: bytes | None, value: bytes | None) -> None:
    _syscall(
        _FSCONFIG,
        ctypes.c_int(context),
        ctypes.c_uint(command),
        ctypes.c_char_p(name),
        ctypes.c_char_p(value),
        ctypes.c_int(0),
    )


def pidfd_getfd(process: int, descriptor: int) -> int:
    """pidfd_getfd(2): a copy of another process's descriptor, close-on-exec."""
    return _syscall(_PIDFD_GETFD, ctypes.c_int(process), ctypes.c_int(descriptor), ctypes.c_uint(0))


def clone3(flags: int, *, exit_signal: int = 0, cgroup: int = -1) -> int:
    """clone3(2) without a new stack: like fork(2), 0 in the child. With CLONE_INTO_CGROUP, `cgroup`
    is a descriptor of a folder of a v2 tree.

    Python's own hooks of a fork do not run, and the C library still believes that it has the
    parent's thread id: only for a process with one thread.
    """
    into = max(cgroup, 0)
    packed = struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, into)
    arguments = ctypes.create_string_buffer(packed, len(packed))
    call = _held_libc().syscall
    return _check(
        int(call(ctypes.c_long(_CLONE3), ctypes.byref(arguments), ctypes.c_size_t(len(packed))))
    )


def signalfd(signals: int) -> int:
    """signalfd(2) for a set of signals as bits: who reads it gets his own, once they are blocked.
    A descriptor, close-on-exec.
    """
    mask = ctypes.create_string_buffer(struct.pack("=Q", signals), 8)
    return _syscall(
        _SIGNALFD4[os.uname().machine],
        ctypes.c_int(-1),
        ctypes.byref(mask),
        ctypes.c_size_t(8),
        ctypes.c_int(os.O_CLOEXEC),
    )


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2): close the descriptors from `first` to `last`, both included."""
    _syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))


def close_all_but(kept: list[int]) -> None:
    """Close every descriptor above 2 that is not among `kept`."""
    first = 3
    for descriptor in sorted({number for number in kept if number > 2}):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first)


def capset(effective: int, permitted: int, inheritable: int = 0) -> None:
    """capset(2) for this thread; each is a set as bits (capabilities(7))."""
    low, high = 0xFFFFFFFF, 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0), 8)
    sets = (effective, permitted, inheritable)
    words = [each & low for each in sets] + [each >> high for each in sets]
    data = ctypes.create_string_buffer(struct.pack("=6I", *words), 24)
    _syscall(_CAPSET[os.uname().machine], ctypes.byref(header), ctypes.byref(data))


def install_filter(program: bytes) -> None:
    """Put a seccomp filter (an array of struct sock_filter) on this thread: prctl(2),
    PR_SET_SECCOMP. Needs no_new_privs or CAP_SYS_ADMIN in the own user namespace.
    """
    code = ctypes.create_string_buffer(program, len(program))
    prog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    pointer = ctypes.create_string_buffer(prog, len(prog))
    _check(_libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(pointer), 0, 0))
