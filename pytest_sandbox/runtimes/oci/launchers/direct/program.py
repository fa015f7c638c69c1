"""Process 1 of a sandbox: a program of some nine hundred bytes that makes the system calls that it
is told to make, and reaps.

It knows nothing of sandboxes. What mounts there are, what is given up, how a command starts and
ends is decided outside of the sandbox, in Python, and comes as tables (see tables). A Python in its
place would take 2 MB of memory, and the kernel 5 ms of copying and throwing away its pages.

The code is that of init.s, which says what it does line by line; there is no compiler where this
package is installed. A test assembles it again, and holds it to these bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from functools import cache
from typing import Final

BASE: Final = 0x1000000000
"""Where its memory begins; see the head of init.s for what lies where in it."""
GIVEN: Final = BASE + 0x10
RESULTS: Final = BASE + 0x1000
BUFFER: Final = BASE + 0x10000
BULK: Final = BASE + 0x200000
"""Room for what is too long for a message, and for what is read."""
SIZE: Final = 0x800000
BULK_SIZE: Final = BASE + SIZE - BULK
CHANNEL: Final = 3
SIGNALS: Final = 4
"""The descriptors that it is started with: its channel, and a signalfd(2)."""
STACK: Final = BASE + 0x10000
"""The end of the stack of a child that shares its memory; a child never uses it."""
MOST_GIVEN: Final = 64
"""Descriptors that can come with a table."""
MOST_COMMANDS: Final = 120
"""It has room for twice as many: one that was let go may not have been reaped."""
MOST_ROWS: Final = 7000
"""What the results have room for."""
_TEXT: Final = BASE - 0x10000
_EXECUTABLE: Final = 0x10  # MFD_EXEC, from Linux 6.3 on
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_CODE: Final = {
    "x86_64": bytes.fromhex(
        "49be0000000010000000b81c0000004c89f7be00008000ba0f0000000f0541c78640010000030000"
        "0041c786480100000400000041c686440100000141c6864c01000001498d86a00100004989867001"
        "000041c68678010000014d89b680010000498d8600000100498986a001000041c786a80100000000"
        "1000b807000000498dbe40010000be0200000048c7c2ffffffff0f05664183be4e010000000f84c4"
        "00000031c0bf04000000498db600020000ba800000000f05418bb600020000418bbe4003000083fe"
        "11740b85ff7407b83e0000000f05b83d00000048c7c7ffffffff498db680020000ba010000004d8d"
        "96880200000f0585c07e6c413b86400300007445498d9e000800003b0374124883c308498d8e0010"
        "00004839cb72ecebb58b7b0448c7030000000089fb498db680020000ba28000000e86d02000089df"
        "b8030000000f05eb8d418bbe8002000089f8c1ef0883e07f74068db880000000b8e70000000f0566"
        "4183be46010000000f8404ffffff41c7868801000010010000b82f000000bf03000000498db66001"
        "0000ba000000400f05bf0100000041f686900100000875b84885c07f2631ff413bbe4003000074a8"
        "41c78640010000ffffffff41c7864401000001000000e9a7feffff458ba600000100498dbe001000"
        "004489e148b80000000000000040f348ab4183a64803000000664183a650030000004531ed4531ff"
        "496bdd38418b86080001004801c3498d9c1e000001004539e50f83020100008b6b04488b7b08488b"
        "7310488b53184c8b53204c8b43284c8b4b30f7c501000000740348633ff7c5020000007403486336"
        "f7c5040000007403486312f7c50800000074034d6312f7c51000000074034d63008b030f054b8984"
        "ee001000004885c0782df7c500020000741985c0754841ffc7458ba60400010041c7864c0300007f"
        "00000041ffc54883c338e967fffffff7c500020000755ef7c500010000746283f8fe74df83f8ec74"
        "da41c7864c0300007e000000ebcd498d8e0008000083390074064883c108ebf58901418b56108951"
        "0441ff8648030000f7c500080000410f958650030000f7c500040000740741898640030000458bae"
        "04000100e9dffeffff4585ff741441c6865103000001418bbe4c030000e91efeffff664183be5003"
        "0000017428418bbe0c00010085ff7907f7d7418b7cbe10498db600100000418b9600000100c1e203"
        "e8360000004183be88010000100f86f7fcffff498b2e83ed10c1ed02418b9e4803000039eb0f83df"
        "fcffff418b7c9e10b8030000000f05ffc3ebe8b82c00000041ba404000004531c04531c90f05c3"
    ),
}
_MACHINES: Final = {"x86_64": 62}


@cache
def is_there() -> bool:
    """Whether there is such a program for this machine, and it is allowed to run: a host may forbid
    to execute files of memory (vm.memfd_noexec, SELinux). It is tried once.
    """
    return os.uname().machine in _CODE and _runs()


def _runs() -> bool:
    # Without a channel it is at its end at once.
    shut = [(os.POSIX_SPAWN_CLOSE, one) for one in (CHANNEL, SIGNALS)]
    made = []
    try:
        made.append(program())
        made.append(fcntl.fcntl(made[0], fcntl.F_DUPFD_CLOEXEC, SIGNALS + 1))
        path = f"/proc/self/fd/{made[1]}"
        pid = os.posix_spawn(path, ["sandbox-init"], {}, file_actions=shut)
    except OSError:
        return False
    finally:
        for descriptor in made:
            os.close(descriptor)
    try:
        return os.waitpid(pid, 0)[1] == 0
    except ChildProcessError:  # somebody ignores the ends of children: it ran
        return True


def program() -> int:
    """A new descriptor of it, as a file of memory that can be executed (execveat(2)). Raises
    OSError.

    All sandboxes share it, and a command is it for a moment (/proc/self/exe): it is sealed, so that
    nobody can write to it ever again (memfd_create(2)).
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create("sandbox-init", flags | _EXECUTABLE)
    except OSError as wrong:
        if wrong.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create("sandbox-init", flags)
    os.write(descriptor, _image(os.uname().machine))
    os.fchmod(descriptor, 0o555)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def _image(machine: str) -> bytes:
    """The executable (elf(5)): its code, which is not written to, and memory without code."""
    code = _CODE[machine]
    head = 64 + 3 * 56
    entry = _TEXT + head
    size = head + len(code)
    loaded, executable, writable, readable = 1, 1, 2, 4
    parts = [
        struct.pack(
            "=4s5B7xHHIQQQIHHHHHH",
            *(b"\x7fELF", 2, 1, 1, 0, 0, 2, _MACHINES[machine], 1, entry, 64, 0, 0),
            *(64, 56, 3, 64, 0, 0),
        ),
        struct.pack(
            "=IIQQQQQQ", loaded, readable | executable, 0, _TEXT, _TEXT, size, size, 0x1000
        ),
        struct.pack("=IIQQQQQQ", loaded, readable | writable, 0, BASE, BASE, 0, SIZE, 0x1000),
        # PT_GNU_STACK: no code on the stack.
        struct.pack("=IIQQQQQQ", 0x6474E551, readable | writable, 0, 0, 0, 0, 0, 16),
        code,
    ]
    return b"".join(parts)
