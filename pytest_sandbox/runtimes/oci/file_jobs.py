"""Jobs of the supervisor: the files of a running sandbox, and what it changed.

They begin on the host's side, since only that reaches `/proc/PID/root` and the store, and go on as
root of the sandboxes' ids.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.layers import jobs
from pytest_sandbox.oci.snapshots.base import find_snapshotter
from pytest_sandbox.runtimes.oci.comparison import compare
from pytest_sandbox.runtimes.oci.selection import select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_sandbox.oci.supervisor import Call

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def _enter(call: Call) -> int:
    """The root of the sandbox `pid`, with its mounts; from here on as root of the ids."""
    root = os.open(f"/proc/{call.args['pid']}/root", _FOLDER)
    call.enter_ids()
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)


def put(call: Call) -> dict[str, Any]:
    """args: `pid`, `path` (an existing folder); fds: a tar stream. See layers.jobs.put."""
    root = _enter(call)
    call.args = {"into": call.args["path"]}
    call.fds = [call.fds[0], root]
    return jobs.put(call)


def get(call: Call) -> dict[str, Any]:
    """args: `pid`, `path`; fds: a stream to write to. See layers.jobs.get."""
    root = _enter(call)
    call.fds = [call.fds[0], root]
    return jobs.get(call)


def stat(call: Call) -> dict[str, Any]:
    """args: `pid`, `path`. See layers.jobs.stat; nothing at all where nothing is there."""
    call.fds = [_enter(call)]
    try:
        return jobs.stat(call)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def changes(call: Call) -> dict[str, Any]:
    """args: `layers` of the image, `uppers` above them (each lowest first), `snapshotter`,
    `created`, `mounted`.
    """
    args = call.args
    with _view(call, args["layers"]) as below:
        if len(args["uppers"]) == 1:
            upper = os.open(args["uppers"][0], os.O_RDONLY | os.O_DIRECTORY)
            call.fds = [upper, below]
            found = call.mapped(lambda: jobs.changes(call))
        else:
            with _view(call, [*args["layers"], *args["uppers"]]) as now:
                uppers = [os.open(one, os.O_RDONLY | os.O_DIRECTORY) for one in args["uppers"]]
                found = call.mapped(lambda: compare(uppers, below, now))
    return select(found, args["created"], args["mounted"])


@contextlib.contextmanager
def _view(call: Call, layers: Sequence[str]) -> Iterator[int]:
    """What some layers show together, as an open folder."""
    place = Path(call.room, f"view-{os.getpid()}-{len(layers)}")
    place.mkdir(mode=0o711)
    lowers = [os.open(layer, _FOLDER) for layer in layers]
    try:
        find_snapshotter(call.args["snapshotter"]).mount(
            lowers, None, None, str(place), read_only=True
        )
        opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield opened
        finally:
            os.close(opened)
    finally:
        for descriptor in lowers:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            linux.umount(place, linux.MNT_DETACH)
        place.rmdir()


def copy(call: Call) -> dict[str, Any]:
    """fds: an upper folder and an empty one. args: `created`, paths that were made for mounts.

    Copies the tree (as reflinks where the file system can) without those.
    """
    from pytest_sandbox.oci.snapshots.overlay import empty
    from pytest_sandbox.oci.snapshots.trees import copy_tree

    try:
        copy_tree(call.fds[0], call.fds[1], "reflink")
    except OSError as wrong:
        if wrong.errno not in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL}:
            raise
        empty(call.fds[1])
        copy_tree(call.fds[0], call.fds[1], "copy")
    _unmake(call.fds[1], call.args["created"])
    return {}


def unmake(call: Call) -> dict[str, Any]:
    """fds: an upper folder. args: `created`: removes those where the sandbox put nothing into."""
    _unmake(call.fds[0], call.args["created"])
    return {}


def _unmake(root: int, created: Sequence[str]) -> None:
    for path in reversed(created):
        parent, _, name = path.strip("/").rpartition("/")
        with contextlib.suppress(OSError):
            flags = os.O_PATH | os.O_DIRECTORY
            folder = linux.openat2(root, parent or ".", flags, resolve=_CONFINED)
            with contextlib.suppress(OSError):
                found = os.lstat(name, dir_fd=folder)
                if stat_module.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=folder)  # not where the sandbox put something into it
                elif not found.st_size:
                    os.unlink(name, dir_fd=folder)
            os.close(folder)


_CONFINED: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS


def remove(call: Call) -> dict[str, Any]:
    """fds: the folder of all sandboxes. args: `name`, the one to remove."""
    call.args = {"names": [call.args["name"]]}
    return jobs.remove(call)
