"""Jobs of the supervisor that unpack layers into a store.

What they need is imported at the top: the supervisor loads it once, and its children share it.
They are short, and make no cycles: those that apply work without Python's garbage collector.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import isal.igzip_lib  # noqa: F401 - most layers are gzip

import pytest_sandbox.oci.layers.ahead
import pytest_sandbox.oci.layers.settle
import pytest_sandbox.oci.layers.unpack  # noqa: F401 - jobs loads these late
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.layers import jobs
from pytest_sandbox.oci.snapshots import find_snapshotter
from pytest_sandbox.oci.snapshots.overlay import open_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.supervisor import Call


def ready(call: Call) -> None:
    """Do nothing: the supervisor has started, and has loaded this module."""


def apply_first(call: Call) -> dict[str, Any]:
    """Apply a packed layer to an empty folder: layers.jobs.apply."""
    call.args["first"] = True
    return jobs.apply(call)


def apply_over(call: Call) -> dict[str, Any]:
    """Apply a packed layer onto the layers below it, so that the snapshotter writes what differs.

    fds: the packed layer, the folder of all layers, the new upper folder, a work folder. args:
    `lowers`, names below the second folder, lowest first; `snapshotter`; the others are
    layers.jobs.apply's. To be called with where="host". The mount is this process's own: nothing
    is left when it dies.
    """
    stream, layers, upper, work = call.fds
    snapshotter = find_snapshotter(call.args["snapshotter"])
    lowers = open_layers(layers, call.args["lowers"])
    root = _shown(call, lambda at: snapshotter.mount(lowers, upper, work, at, volatile=True))
    call.fds = [stream, root, _reopened(lowers[-1])]
    gc.disable()
    told = jobs.apply(call)
    os.close(root)
    snapshotter.settle(upper)
    return told


def apply_full(call: Call) -> dict[str, Any]:
    """Apply a packed layer onto a copy of the tree below it.

    fds: the packed layer, the diff folder of the layer below, the new folder. args: `snapshotter`;
    the others are layers.jobs.apply's.
    """
    stream, below, tree = call.fds
    find_snapshotter(call.args["snapshotter"]).prepare([below], tree)
    call.fds = [stream, tree]
    gc.disable()
    return jobs.apply(call)


def ahead(call: Call) -> dict[str, Any]:
    """Apply a packed layer before those below it are there: layers.jobs.ahead."""
    gc.disable()
    return jobs.ahead(call)


def settle(call: Call) -> dict[str, Any]:
    """Complete what went ahead: layers.jobs.settle. To be called with where="host".

    fds: the folder of all layers, the upper folder. args: `lowers`, `snapshotter`, `pending`.
    """
    layers, upper = call.fds
    snapshotter = find_snapshotter(call.args["snapshotter"])
    lowers = open_layers(layers, call.args["lowers"])
    root = _shown(call, lambda at: snapshotter.mount(lowers, None, None, at, read_only=True))
    call.fds = [upper, root, _reopened(lowers[-1])]
    return jobs.settle(call)


def _shown(call: Call, mount: Callable[[str], None]) -> int:
    """Mount something for this process alone, and become root of the sandboxes' ids; its root."""
    linux.unshare(linux.CLONE_NEWNS)
    target = os.path.join(call.room, f"layers-{os.getpid()}")  # noqa: PTH118
    os.mkdir(target)  # noqa: PTH102
    try:
        mount(target)
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.umount(target, linux.MNT_DETACH)
    finally:
        os.rmdir(target)  # noqa: PTH106
    call.enter_ids()
    return root


def _reopened(folder: int) -> int:
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)


def diff(call: Call) -> dict[str, Any]:
    """Pack a layer: layers.jobs.diff, with a tree that may be open as a mere path."""
    tree, stream = call.fds
    call.fds = [_reopened(tree), stream]
    return jobs.diff(call)


def digest(call: Call) -> dict[str, Any]:
    """The digest of the tree fds[0], as snapshots.digests counts it."""
    from pytest_sandbox.oci.snapshots.digests import tree_digest

    return {"digest": tree_digest(call.fds[0])}
