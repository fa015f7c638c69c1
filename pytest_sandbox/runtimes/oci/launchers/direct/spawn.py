"""A new process by a list of system calls, without a copy of this one's memory.

fork(2) copies the page tables of the interpreter, and its child throws them away again: that costs
more than what it is for. Here the child shares the memory and its parent waits until it executes a
program or ends, as after vfork(2). No Python can run in such a child, so a few instructions make
the calls that a table names, in order, and write down what each gave.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_VM: Final = 0x00000100
_CLONE_VFORK: Final = 0x00004000
_SIGCHLD: Final = 17
_STACK: Final = 64 << 10
_ROW: Final = struct.Struct("=8Q")
"""Number of the call, its six arguments, and its result; before the call, the lowest bit of that
says that the child goes on when it fails.
"""
_CODE: Final = {
    # int spawn(struct clone_args *rdi, size_t rsi, row *rdx): clone3, and in the child the calls
    "x86_64": bytes.fromhex(
        "53"  # push rbx
        "4889d3"  # mov rbx, rdx
        "b8b3010000"  # mov eax, 435 (clone3)
        "0f05"  # syscall
        "4885c0"  # test rax, rax
        "7402"  # jz child
        "5b"  # pop rbx
        "c3"  # ret
        # child:
        "4c8b6338"  # mov r12, [rbx+56]: go on when it fails?
        "488b03"  # mov rax, [rbx]
        "488b7b08"  # mov rdi, [rbx+8]
        "488b7310"  # mov rsi, [rbx+16]
        "488b5318"  # mov rdx, [rbx+24]
        "4c8b5320"  # mov r10, [rbx+32]
        "4c8b4328"  # mov r8, [rbx+40]
        "4c8b4b30"  # mov r9, [rbx+48]
        "0f05"  # syscall
        "48894338"  # mov [rbx+56], rax
        "4883c340"  # add rbx, 64
        "4885c0"  # test rax, rax
        "79d2"  # jns child: the next one
        "41f6c401"  # test r12b, 1
        "75cc"  # jnz child
        "b83c000000"  # mov eax, 60 (exit)
        "bf7f000000"  # mov edi, 127
        "0f05"  # syscall
    ),
}


class Calls(NamedTuple):
    """The numbers of the system calls that a command needs."""

    setsid: int
    dup3: int
    close_range: int
    prctl: int
    prlimit64: int
    setgroups: int
    setresgid: int
    setresuid: int
    chdir: int
    execve: int


_NUMBERS: Final = {
    "x86_64": Calls(112, 292, 436, 157, 302, 116, 119, 117, 80, 59),
}


class Row(NamedTuple):
    """One call. `rest`: go on with the next one where it fails."""

    number: int
    arguments: tuple[int, ...] = ()
    rest: bool = False


class Spawned(NamedTuple):
    """The child's pid, and the result of each call: 0 or more, or an errno below 0; None for one
    that was not made (or did not come back: a program runs).
    """

    pid: int
    results: tuple[int | None, ...]


def numbers() -> Calls | None:
    """Those of this machine; None where only fork(2) can be used."""
    return _NUMBERS.get(os.uname().machine)


@cache
def _thunk() -> Any:
    code = _CODE[os.uname().machine]
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
    memory.write(code)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(mmap.PAGESIZE), 5):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    made = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    function = made(place)
    stack = ctypes.create_string_buffer(_STACK)
    return function, ctypes.addressof(stack), (memory, stack)


def prepare() -> None:
    """Make what `spawn` needs, ahead."""
    _thunk()


def spawn(rows: Sequence[Row], *, flags: int = 0, cgroup: int = 0) -> Spawned:
    """Make a child that makes the calls; the last one should be execve(2), which does not come
    back. Where a call fails that has to succeed, or the rows end, the child exits with 127.

    What the arguments point to must stay where it is until this returns. Raises OSError where
    there can be no child.
    """
    function, stack, _ = _thunk()
    table = ctypes.create_string_buffer(_ROW.size * (len(rows) + 1))
    mark = 1 << 62  # no result looks like it
    for index, (number, arguments, rest) in enumerate(rows):
        padded = (*arguments, *(0,) * (6 - len(arguments)))
        _ROW.pack_into(table, index * _ROW.size, number, *padded, mark | rest)
    # The end of the table: a call that no kernel has fails with ENOSYS.
    _ROW.pack_into(table, len(rows) * _ROW.size, 0xFFFF, 0, 0, 0, 0, 0, 0, 0)
    clone = struct.pack(
        "=11Q",
        flags | _CLONE_VM | _CLONE_VFORK,
        *(0, 0, 0, _SIGCHLD, stack, _STACK, 0, 0, 0, cgroup),
    )
    arguments_of_clone = ctypes.create_string_buffer(clone, len(clone))
    pid = function(ctypes.addressof(arguments_of_clone), len(clone), ctypes.addressof(table))
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    found: list[int | None] = []
    for index in range(len(rows)):
        result = _ROW.unpack_from(table, index * _ROW.size)[7]
        if result & ~1 == mark:
            found.append(None)
        else:
            found.append(result - (1 << 64) if result >> 63 else result)
    return Spawned(pid, tuple(found))


def failed(rows: Sequence[Row], spawned: Spawned) -> tuple[int, int] | None:
    """(index, errno) of the last call of a child that ended before a program ran; None if one
    runs.
    """
    for index, (row, result) in enumerate(zip(rows, spawned.results, strict=True)):
        if result is None:
            return None  # it did not come back
        if result < 0 and (not row.rest or index == len(rows) - 1):
            return index, -result
    return len(rows) - 1, errno.ENOSYS
