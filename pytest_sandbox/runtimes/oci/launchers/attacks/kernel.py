"""Attacks by system calls that the filter has to refuse: the machine's own, 32-bit and x32 ones.

Arguments are chosen so that a call which is let through does no harm.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import time
from functools import partial
from typing import Any, Final

from pytest_sandbox.runtimes.oci.launchers.attacks.calls import (
    NUMBERS,
    call,
    first,
    judge,
    raw,
    reached,
)
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside

_NO_FILE: Final = b"/nonexistent-attack"
_NEW_USER: Final = 0x10000000
_SESSION_KEYRING: Final = 0xFFFFFFFD
_VSOCK, _ALG = 40, 38
_SOCK_STREAM, _SEQPACKET = 1, 5
_FAMILIES: Final = (("AF_VSOCK", _VSOCK, _SOCK_STREAM), ("AF_ALG", _ALG, _SEQPACKET))


def _keys(_: Outside) -> str | None:
    """The keyrings are not divided by user namespaces alone."""
    return first(
        [
            reached("keyctl", 0, _SESSION_KEYRING, 0),
            reached("add_key", b"user", b"attack", b"x", 1, _SESSION_KEYRING),
            reached("request_key", b"user", b"attack", None, 0),
        ]
    )


def _bpf(_: Outside) -> str | None:
    # BPF_MAP_CREATE of an array of one number
    attributes = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1), 128)
    return reached("bpf", 0, attributes, 128)


def _perf(_: Outside) -> str | None:
    # the CPU clock of this process, without the kernel (exclude_kernel, exclude_hv)
    attributes = ctypes.create_string_buffer(struct.pack("=IIQQQQQ", 1, 112, 0, 0, 0, 0, 96), 112)
    return reached("perf_event_open", attributes, 0, -1, -1, 0)


def _userfaultfd(_: Outside) -> str | None:
    return reached("userfaultfd", 1)  # UFFD_USER_MODE_ONLY: what the kernel allows to everybody


def _io_uring(_: Outside) -> str | None:
    return reached("io_uring_setup", 1, ctypes.create_string_buffer(120))


def _modules(_: Outside) -> str | None:
    return first(
        [
            reached("init_module", b"", 0, b""),
            reached("finit_module", -1, b"", 0),
            reached("delete_module", b"nonexistent_attack", os.O_NONBLOCK),
        ]
    )


def _machine(_: Outside) -> str | None:
    """What changes the whole machine: another kernel, swap, accounting, a restart."""
    return first(
        [
            reached("kexec_load", 0, 99, None, 0),
            reached("kexec_file_load", -1, -1, 0, None, 0),
            reached("reboot", 0, 0, 0, None),
            reached("swapon", _NO_FILE, 0),
            reached("acct", _NO_FILE),
            reached("fanotify_init", 4, 0),
            reached("iopl", 3),
            reached("ioperm", 0x80, 1, 1),
        ]
    )


def _clock(_: Outside) -> str | None:
    now = time.clock_gettime_ns(time.CLOCK_REALTIME)
    moment = (ctypes.c_long * 2)(now // 10**9, now % 10**9)
    return reached("clock_settime", 0, moment)


def _sockets(_: Outside) -> str | None:
    """Families that no network namespace divides: the hypervisor's, and the kernel's ciphers."""
    found: list[str | None] = []
    for name, family, kind in _FAMILIES:
        if call("socket", family, kind, 0) >= 0:
            found.append(f"a socket of {name} can be made")
    return first(found)


# --- calls of other kinds ---------------------------------------------------------------------

_I386: Final = {
    "mount": (21, 0, 0, 0, 0, 0),
    "umount2": (52, 0, 0),
    "swapon": (87, 0, 0),
    "reboot": (88, 0, 0, 0, 0),
    "iopl": (110, 3),
    "init_module": (128, 0, 0, 0),
    "pivot_root": (217, 0, 0),
    "kexec_load": (283, 0, 99, 0, 0),
    "add_key": (286, 0, 0, 0, 0, 0),
    "keyctl": (288, 0, _SESSION_KEYRING, 0),
    "unshare": (310, _NEW_USER),
    "perf_event_open": (336, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0),
    "open_by_handle_at": (342, 0xFFFFFFFF, 0, 0),
    "setns": (346, 0xFFFFFFFF, 0),
    "bpf": (357, 0, 0, 0),
    "socket of AF_VSOCK": (359, _VSOCK, _SOCK_STREAM, 0),
    "socket of AF_ALG": (359, _ALG, _SEQPACKET, 0),
    "userfaultfd": (374, 1),
    "io_uring_setup": (425, 1, 0),
    "open_tree": (428, 0, 0, 1),
    "fsopen": (430, 0, 0),
}
_INT80: Final = bytes.fromhex(
    "53 55"  # push rbx, rbp
    "8b07 8b5f04 8b4f08 8b570c 8b7710 8b6f18 8b7f14"  # eax, ebx, ecx, edx, esi, ebp, edi
    "cd80"  # int 0x80
    "5d 5b c3"  # pop rbp, rbx; return
)
_MAP_32BIT: Final = 0x40
_X32: Final = 0x40000000
_X32_CALLS: Final = (
    ("unshare", _NEW_USER),
    ("keyctl", 0, _SESSION_KEYRING, 0),
    ("setns", -1, 0),
    ("bpf", 0, None, 0),
    ("userfaultfd", 1),
    ("io_uring_setup", 1, None),
    ("mount", None, None, None, 0, None),
    ("pivot_root", None, None),
    ("perf_event_open", None, 0, -1, -1, 0),
    ("open_tree", -1, None, 1),
    ("clone3", None, 88),
)


class _Gate:
    """Calls by `int 0x80`, which the kernel takes for those of a 32-bit program."""

    def __init__(self) -> None:
        # Memory below 4 GiB: pointers of such calls have 32 bits.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
        self.memory = mmap.mmap(-1, 4096, flags, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory[: len(_INT80)] = _INT80
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._enter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self.address)

    def call(self, number: int, *arguments: int) -> int:
        words = (ctypes.c_uint32 * 7)(number, *arguments)
        return int(self._enter(ctypes.addressof(words)))

    def put(self, data: bytes) -> int:
        """Bytes in that memory; their address."""
        self.memory[1024 : 1024 + len(data)] = data
        return self.address + 1024


def _i386(_: Outside) -> str | None:
    """The calls of 32-bit programs, from within a 64-bit one."""
    return first([_i386_one(name, *words) for name, words in _I386.items()])


def _i386_one(name: str, number: int, *arguments: int) -> str | None:
    status, result = _apart(lambda gate: gate.call(number, *arguments))
    return _verdict(f"32-bit {name}", status, result)


def _i386_clone(_: Outside) -> str | None:
    def clone(gate: _Gate) -> int:
        result = gate.call(120, _NEW_USER | signal.SIGCHLD, 0, 0, 0, 0)
        if result == 0:
            os._exit(0)
        return result

    def clone3(gate: _Gate) -> int:
        arguments = struct.pack("=11Q", _NEW_USER, 0, 0, 0, signal.SIGCHLD, *[0] * 6)
        result = gate.call(435, gate.put(arguments), len(arguments))
        if result == 0:
            os._exit(0)
        return result

    found = [
        _verdict(f"32-bit {name} into a new user namespace", *_apart(run))
        for name, run in (("clone", clone), ("clone3", clone3))
    ]
    return first(found)


def _i386_socketcall(_: Outside) -> str | None:
    """socketcall(2) has its arguments in memory, where a filter cannot look."""

    found: list[str | None] = []
    for name, *arguments in _FAMILIES:
        packed = struct.pack("=III", *arguments, 0)
        status, result = _apart(partial(_by_socketcall, packed))
        if status == 0 and result >= 0:
            found.append(f"a socket of {name} can be made by a 32-bit socketcall")
    return first(found)


def _by_socketcall(arguments: bytes, gate: _Gate) -> int:
    return gate.call(102, 1, gate.put(arguments))


def _apart(run: Any) -> tuple[int, int]:
    """How a child process ended that makes a call, and what the call gave."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, struct.pack("=q", run(_Gate())))
        finally:
            os._exit(0)
    os.close(writer)
    told = os.read(reader, 8)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, struct.unpack("=q", told)[0] if len(told) == 8 else -errno.ENOSYS


def _verdict(name: str, status: int, result: int) -> str | None:
    """A kernel without such calls kills with SIGSEGV, a filter may with SIGSYS."""
    if status in (-signal.SIGSEGV, -signal.SIGSYS):
        return None
    return judge(name, result) if status == 0 else f"{name} ended with {status}"


def _x32(_: Outside) -> str | None:
    """The calls of x32 programs: the same numbers with a bit that a filter may overlook."""
    found = []
    for name, *arguments in _X32_CALLS:
        found.append(judge(f"x32 {name}", raw(NUMBERS[name] | _X32, *arguments)))
    return first(found)


_X86: Final = ("x86_64",)
ATTACKS: Final = (
    Attack("keys", "keyctl, add_key, request_key", _keys),
    Attack("bpf", "bpf", _bpf),
    Attack("perf", "perf_event_open", _perf),
    Attack("userfaultfd", "userfaultfd", _userfaultfd),
    Attack("io-uring", "io_uring_setup", _io_uring),
    Attack("modules", "kernel modules loaded and removed", _modules),
    Attack("machine", "kexec, reboot, swap, accounting, ports", _machine),
    Attack("clock", "the machine's clock set", _clock),
    Attack("socket-families", "AF_VSOCK, AF_ALG", _sockets),
    Attack("i386", "21 refused calls by int 0x80", _i386, _X86),
    Attack("i386-clone", "a user namespace by a 32-bit clone, clone3", _i386_clone, _X86),
    Attack("i386-socketcall", "AF_VSOCK, AF_ALG by a 32-bit socketcall", _i386_socketcall, _X86),
    Attack("x32", "refused calls with x32 numbers", _x32, _X86),
)
