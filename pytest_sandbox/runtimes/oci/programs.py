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


def _look(root: int, path: str, uid: int) -> int:
    try:
        flags = os.O_PATH
        descriptor = linux.openat2(root, path, flags, resolve=linux.RESOLVE_IN_ROOT)
    except OSError as wrong:
        return 126 if wrong.errno in {errno.EACCES, errno.ELOOP} else 127
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return 126
    bits = 0o111 if uid == 0 else (0o111 if uid == found.st_uid else 0o011)
    return 0 if found.st_mode & bits else 126
