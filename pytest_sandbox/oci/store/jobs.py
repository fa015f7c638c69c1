"""Jobs of the supervisor on the files of a store (see oci/supervisor)."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor import Call


def move(call: Call) -> None:
    """Rename `name` of the folder fds[0] to `new` in the folder fds[1]."""
    os.rename(call.args["name"], call.args["new"], src_dir_fd=call.fds[0], dst_dir_fd=call.fds[1])


def count(call: Call) -> dict[str, Any]:
    """How many entries the folder fds[0] has below it, and the bytes of their regular files."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=call.fds[0])
    entries = total = 0
    seen: set[tuple[int, int]] = set()
    for _, folders, files, at in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
        entries += len(folders) + len(files)
        for name in files:
            found = os.lstat(name, dir_fd=at)
            if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                if found.st_nlink > 1:
                    seen.add((found.st_dev, found.st_ino))
                total += found.st_size
    return {"entries": entries, "bytes": total}
