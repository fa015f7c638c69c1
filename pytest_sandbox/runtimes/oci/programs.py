"""Whether a command can be run in a root file system, before anything is started."""

from __future__ import annotations

import errno
import os
import stat

from pytest_sandbox.oci import linux

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(root: int, name: str, path: str, uid: int, cwd: str = "/") -> int:
    """0 where `name` can be run as `uid`, 126 for what cannot be executed, 127 for nothing.

    `root` is a descriptor of the root; links are followed inside it. A name without a slash is
    looked for in `path` (as execvp(3) does).
    """
    if "/" in name:
        return _look(root, name if name.startswith("/") else f"{cwd}/{name}", uid)
    found = 127
    for folder in (path or _PATH).split(":"):
        status = _look(root, f"{folder or cwd}/{name}", uid)
        if status == 0:
            return 0
        if status == 126:
            found = 126
    return found


def not_executed(name: str, status: int) -> bytes:
    """What a command's stderr says of a program that is not there (127) or cannot run (126)."""
    text = "not found" if status == 127 else "cannot be executed"
    return f"{name}: {text}\n".encode("utf-8", "surrogateescape")


def _look(root: int, path: str, uid: int) -> int:
    try:
        flags = os.O_PATH
        descriptor = linux.openat2(root, path, flags, resolve=linux.RESOLVE_IN_ROOT)
    except OSError as wrong:
        return 126 if wrong.errno in {errno.EACCES, errno.ELOOP} else 127
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return 126
        bits = 0o111 if uid in {0, found.st_uid} else 0o011
        if not found.st_mode & bits:
            return 126
        return _look_inside(root, descriptor)
    finally:
        os.close(descriptor)


def _kind(start: bytes) -> int:
    return int.from_bytes(start[16:18], "little" if start[5] == 1 else "big")


def _look_inside(root: int, descriptor: int) -> int:
    """What the kernel would say of a program's first bytes (execve(2), ENOEXEC)."""
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123
            start = file.read(256)
    except OSError:
        return 0  # the kernel may read what we may not
    if start[:4] == b"\x7fELF":
        # Class, and a type that can be run (elf(5)); whether the machine fits, the kernel knows.
        return 0 if len(start) >= 52 and start[4] in {1, 2} and _kind(start) in {2, 3} else 126
    if start[:2] != b"#!":
        return 126
    words = start[2:].partition(b"\n")[0].split()
    if not words:
        return 126
    try:
        os.close(linux.openat2(root, words[0], os.O_PATH, resolve=linux.RESOLVE_IN_ROOT))
    except OSError:
        return 127
    return 0
