"""The interpreter, as a program that no sandbox can write to.

What starts the commands of a sandbox is a Python of ours. A command that executes `/proc/self/exe`
becomes that very program, and has its file open (CVE-2019-5736 was this in runc). A sandbox of root
has ids that own nothing on the machine. But an ordinary user is root of its sandboxes, and may own
the interpreter: then a copy in memory is executed that nobody can change.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Final, NamedTuple

_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, SHRINK, GROW and WRITE of fcntl(2)."""
_MFD_EXEC: Final = 0x10


class Program(NamedTuple):
    """What to execute as `sys.executable`; `libraries` is a folder that the loader has to look
    into, as it no longer finds what lies beside the program. `descriptor` is to be closed then, -1
    for none.
    """

    path: str
    libraries: str = ""
    descriptor: int = -1


def is_ours() -> bool:
    """Whether the interpreter's file may be changed by an ordinary user who runs it."""
    if os.geteuid() == 0:
        return False
    try:
        return os.stat(sys.executable).st_uid == os.geteuid() or os.access(  # noqa: PTH116
            sys.executable, os.W_OK
        )
    except OSError:
        return True


def interpreter() -> Program:
    """The interpreter, or a sealed copy of it where that is needed. Raises OSError."""
    if not is_ours():
        return Program(sys.executable)
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create("pytest-sandbox-python", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.3 every one can be executed
            raise
        copy = os.memfd_create("pytest-sandbox-python", flags)
    with open(sys.executable, "rb") as file:  # noqa: PTH123
        size = os.fstat(file.fileno()).st_size
        while size > 0:
            size -= os.sendfile(copy, file.fileno(), None, size)
    fcntl.fcntl(copy, _ADD_SEALS, _SEALS)
    # The child finds it by this process: its own descriptors are closed before it executes.
    return Program(f"/proc/{os.getpid()}/fd/{copy}", _library(), copy)


def _library() -> str:
    """The folder of Python's own library, where it is a shared one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            path = line.partition("/")[2]
            if path.rpartition("/")[2].startswith("libpython"):
                return "/" + path.rpartition("/")[0]
    return ""
