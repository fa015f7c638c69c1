"""The root file system of a sandbox that is started: its folders, and the mount over them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.snapshots.base import find_snapshotter
from pytest_sandbox.oci.snapshots.overlay import Overlay
from pytest_sandbox.oci.spec.seccomp import kernel_version

if TYPE_CHECKING:
    from pytest_sandbox.oci.snapshots.base import Snapshotter
    from pytest_sandbox.oci.supervisor import Call
    from pytest_sandbox.runtimes.oci.order import Order

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HERE: Final = -100  # AT_FDCWD


def mount_root(call: Call, order: Order, target: Path, *, detached: bool) -> int:
    """Mount it at `target` and give -1, or with `detached` nowhere: then its descriptor. The upper
    and work folders are made where the order has none. Raises OSError, SnapshotterFailed.
    """
    folder = Path(order.folder)
    upper, work = folder / "upper", folder / "work"
    if not order.upper:
        folder.mkdir(mode=0o700, exist_ok=True)
        for part in (upper, work):
            part.mkdir(mode=0o755)
            if call.ids is not None:
                os.chown(part, order.uids[0][1], order.gids[0][1])
    lowers = [os.open(layer, _FOLDER) for layer in order.layers]
    two = [os.open(part, _FOLDER) for part in (upper, work)]
    snapshotter = find_snapshotter(order.snapshotter)
    try:
        if not order.upper:
            if snapshotter.layered:
                snapshotter.prepare(lowers, two[0])
            else:
                call.mapped(lambda: _prepared(snapshotter, lowers, two[0]))
        if detached and isinstance(snapshotter, Overlay) and _new_mounts():
            return snapshotter.detached(lowers, two[0], two[1])
        target.mkdir(mode=0o755, parents=True)
        target.parent.chmod(0o711)
        snapshotter.mount(lowers, two[0], two[1], str(target), volatile=True)
    finally:
        for descriptor in (*lowers, *two):
            os.close(descriptor)
    if not detached:
        return -1
    tree = linux.open_tree(_HERE, target, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
    linux.umount(target, linux.MNT_DETACH)
    return tree


def _prepared(snapshotter: Snapshotter, lowers: list[int], upper: int) -> dict[str, Any]:
    snapshotter.prepare(lowers, upper)
    return {}


@cache
def _new_mounts() -> bool:
    """Whether an overlay can be mounted nowhere (Linux 6.8, see Overlay.detached)."""
    return kernel_version(os.uname().release) >= (6, 8)
