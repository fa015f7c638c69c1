"""What the supervisor's children do for bundles. The last descriptor is the bundle's rootfs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor.jobs import Call


def copy_layers(call: Call) -> dict[str, Any]:
    """Copy what stored layers show together. To be called with where="host".

    fds: the folder of all layers, the rootfs. args: `lowers`, names below the first, lowest first;
    `flavour`, that of the layers (`full`: the last one is the whole tree).
    """
    from pytest_sandbox.oci.snapshots import find_snapshotter
    from pytest_sandbox.oci.snapshots.overlay import open_layers
    from pytest_sandbox.oci.snapshots.trees import copy_tree

    layers, target = call.fds
    lowers = open_layers(layers, call.args["lowers"])
    if call.args["flavour"] == "full":
        call.enter_ids()
        return {"entries": copy_tree(lowers[-1], target)}
    linux.unshare(linux.CLONE_NEWNS)  # the mount is this process's own
    place = os.path.join(call.room, f"bundle-{os.getpid()}")  # noqa: PTH118
    os.mkdir(place)  # noqa: PTH102
    try:
        find_snapshotter("overlay").mount(lowers, None, None, place, read_only=True)
        shown = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.umount(place, linux.MNT_DETACH)
    finally:
        os.rmdir(place)  # noqa: PTH106
    call.enter_ids()
    return {"entries": copy_tree(shown, target)}


def unpack_tree(call: Call) -> dict[str, Any]:
    """Unpack an archive of a whole tree, in which `.wh.` names are names like all others.

    fds: the archive (plain, gzip or zstd; a file or a pipe), the rootfs. args: `name` for
    messages, `digest` of the unpacked archive ("": not checked), `bounds` (a dict, or None).
    """
    from pytest_sandbox.oci.layers.apply import Applier
    from pytest_sandbox.oci.layers.decompress import Unpacked
    from pytest_sandbox.oci.layers.reader import Reader
    from pytest_sandbox.oci.layers.unpack import own_ids

    told = call.args.get("bounds")
    bounds = Bounds(**told) if told else DEFAULT_BOUNDS
    name = call.args["name"]
    source = Unpacked(call.fds[0], bounds, name=name)
    try:
        reader = Reader(source, bounds, name=name)
        ids = own_ids()
        applied = Applier(call.fds[1], reader, bounds, ids=ids, whiteouts=False).apply()
    finally:
        source.close()
    if call.args["digest"] and source.digest != call.args["digest"]:
        msg = f"{name} has the digest {source.digest}, not {call.args['digest']}"
        raise InvalidImage(msg, next_step="make it again")
    return {"entries": applied.entries, "digest": source.digest}


def remove(call: Call) -> None:
    """Remove the entries `names` of the folder fds[0]. To be called with where="host"."""
    from pytest_sandbox.oci.layers.removal import remove_tree

    for name in call.args["names"]:
        remove_tree(call.fds[0], name)
