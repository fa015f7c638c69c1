"""System calls by their numbers, as a program of a sandbox can make them without any library."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS})
"""What the filter, missing capabilities and read-only mounts answer."""

_X86_64: Final = {
    "socket": 41,
    "clone": 56,
    "ptrace": 101,
    "syslog": 103,
    "pivot_root": 155,
    "acct": 163,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "reboot": 169,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
}
_AARCH64: Final = {
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "acct": 89,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "delete_module": 106,
    "clock_settime": 112,
    "syslog": 116,
    "ptrace": 117,
    "reboot": 142,
    "socket": 198,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "clone": 220,
    "swapon": 224,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "name_to_handle_at": 264,
    "open_by_handle_at": 265,
    "setns": 268,
    "process_vm_readv": 270,
    "kcmp": 272,
    "finit_module": 273,
    "bpf": 280,
    "userfaultfd": 282,
    "kexec_file_load": 294,
}
_EVERYWHERE: Final = {
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
NUMBERS: Final = {
    **({"x86_64": _X86_64, "aarch64": _AARCH64}.get(os.uname().machine) or {}),
    **_EVERYWHERE,
}
"""The numbers of this machine's own calls."""

Argument = Any
"""An int, bytes, None (0), or a ctypes array."""


def raw(number: int, *arguments: Argument) -> int:
    """The result of a call, or -errno."""
    ctypes.set_errno(0)
    result = int(_libc.syscall(ctypes.c_long(number), *map(_word, arguments)))
    return -ctypes.get_errno() if result == -1 else result


def call(name: str, *arguments: Argument) -> int:
    """The result of the call of that name, or -errno; -ENOSYS where a machine has no such call."""
    number = NUMBERS.get(name)
    return -errno.ENOSYS if number is None else raw(number, *arguments)


def judge(name: str, result: int) -> str | None:
    """None if a call was refused; else that it was done, or with which error it was let through."""
    if result >= 0:
        return f"{name} was done"
    if -result in REFUSED:
        return None
    return f"{name} was let through ({errno.errorcode.get(-result, -result)})"


def reached(name: str, *arguments: Argument) -> str | None:
    """Make a call that a filter must refuse, whatever its arguments; see judge."""
    return judge(name, call(name, *arguments))


def first(found: list[str | None]) -> str | None:
    """Everything that was possible, in one line; None where nothing was."""
    return "; ".join(one for one in found if one) or None


def refused(error: OSError) -> bool:
    """Whether an error says no, or that there is nothing there."""
    return error.errno in REFUSED or error.errno in (errno.ENOENT, errno.ENOTDIR)


def _word(argument: Argument) -> Any:
    if argument is None:
        return ctypes.c_long(0)
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    return argument
