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
    from collections.abc import Iterable

_CLONE_VM: Final = 0x00000100
_CLONE_VFORK: Final = 0x00004000
SIGCHLD: Final = 17
_STACK: Final = 64 << 10
_ROW: Final = struct.Struct("=8Q")
"""Number of the call, its six arguments, and its result; before the call, the lowest bit of that
says that the child goes on when it fails.
"""
_RESULT: Final = struct.Struct("=q")
_RESULT_AT: Final = 56
_MARK: Final = 1 << 62
"""No result looks like it."""
_END: Final = _ROW.pack(0xFFFF, 0, 0, 0, 0, 0, 0, 0)
"""The end of a table: a call that no kernel has fails with ENOSYS."""
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


class Row(NamedTuple):
    """One call. `rest`: go on with the next one where it fails."""

    number: int
    arguments: tuple[int, ...] = ()
    rest: bool = False


class Spawned(NamedTuple):
    """The child's pid, and the table as it was and as the child left it."""

    pid: int
    given: bytes
    left: bytes

    def result(self, index: int) -> int | None:
        """What a call gave: 0 or more, or an errno below 0; None for one that was not made (or did
        not come back: a program runs).
        """
        found: int = _RESULT.unpack_from(self.left, index * _ROW.size + _RESULT_AT)[0]
        return None if found & ~1 == _MARK else found

    def failed(self) -> tuple[int, int] | None:
        """(index, errno) of the last call of a child that ended before a program ran; None if one
        runs.
        """
        last = len(self.given) // _ROW.size - 1
        # Mostly the last call is the one that did not come back.
        quick = last > 0 and self.result(last) is None and self.result(last - 1) is not None
        for index in range(last - 1 if quick else 0, last + 1):
            result = self.result(index)
            if result is None:
                return None
            if result < 0 and (index == last or not self._rest(index)):
                return index, -result
        return last, errno.ENOSYS

    def _rest(self, index: int) -> bool:
        return bool(self.given[index * _ROW.size + _RESULT_AT] & 1)


def pack(rows: Iterable[Row]) -> bytes:
    """Rows as a part of a table."""
    packed = []
    for number, arguments, rest in rows:
        padded = (*arguments, *(0,) * (6 - len(arguments)))
        packed.append(_ROW.pack(number, *padded, _MARK | rest))
    return b"".join(packed)


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


def spawn(table: bytes, *, flags: int = 0, cgroup: int = 0, signal: int = SIGCHLD) -> Spawned:
    """Make a child that makes the calls of a table (see `pack`); the last one should be execve(2),
    which does not come back. Where a call fails that has to succeed, or the table ends, the child
    exits with 127.

    `flags`, `cgroup` and `signal`, which its parent gets at its end, are those of clone3(2). What
    the arguments point to must stay where it is until this returns. Raises OSError where there can
    be no child.
    """
    function, stack, _ = _thunk()
    rows = ctypes.create_string_buffer(table + _END)
    clone = struct.pack(
        "=11Q",
        flags | _CLONE_VM | _CLONE_VFORK,
        *(0, 0, 0, signal, stack, _STACK, 0, 0, 0, cgroup),
    )
    arguments = ctypes.create_string_buffer(clone, len(clone))
    pid = function(ctypes.addressof(arguments), len(clone), ctypes.addressof(rows))
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return Spawned(pid, table, rows.raw)
