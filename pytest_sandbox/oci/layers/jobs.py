"""What the supervisor's children do with layers and trees (`where="mapped"`).

Folders and streams come as descriptors, in this order; `bounds` is a dict of Bounds' fields, left
out for the defaults. Paths in trees are absolute or not, both from the tree's root, and confined
to it. All raise OSError as the kernel does.

apply    fds: the packed layer (file or pipe), the tree [, the diff folder of the layer below, whose
         mode, owner, attributes and times the tree's root takes first]. args: `layer` (its name in
         messages), `diff_id` (left out: not checked), `first` (an image's first layer: the root
         begins with 0755 and the time 0), `bounds`. Gives `diff_id`, `size` (unpacked bytes),
         `packed` (bytes read), `entries`, `devices`, `xattrs`, `first_xattr` (see Applied). Raises
         InvalidImage; the tree is then to be thrown away.
ahead    The same for a layer whose lower ones are still on their way: the tree is the new, empty
         upper folder itself. Gives `pending` too, for settle; or `redo`, a reason why this layer
         must be applied again, on top of the lower ones.
settle   fds: the upper folder, the view of the layers below it, the diff folder of the layer below.
         args: `pending`. Completes what `ahead` began. Gives `redo`, empty when all is well.
diff     fds: the tree, a stream to write to. args: `overlay` (it is an overlay's upper folder),
         `pack` ("", "gzip" or "zstd"), `bounds`. Gives `diff_id`, `size`, `digest`, `packed` (the
         written bytes), `sockets` (left out). Raises SandboxError.
remove   fds: a folder. args: `names` in it, removed with all that is in them; missing ones are
         passed over. Gives `removed`.
put      fds: a stream with an archive, the tree. args: `into` (a folder in it), `bounds`. Gives
         what apply gives of Applied. Raises InvalidImage.
get      fds: a stream to write to, the tree. args: `path`, `bounds`. Gives `entries`. The archive's
         names begin with the path's last one.
stat     fds: the tree. args: `path`. Gives `name`, `mode`, `uid`, `gid`, `size`, `mtime`, `link`.
changes  fds: an overlay's upper folder, the view of the layers below it. Gives `added`, `changed`,
         `removed`: absolute paths, sorted.
"""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor import Call

_DESCRIPTORS = 8192


def _bounds(call: Call) -> Bounds:
    told = call.args.get("bounds")
    return Bounds(**told) if told else DEFAULT_BOUNDS


def _many_descriptors() -> None:
    """Walks hold a descriptor for each level, and a path may have two thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def apply(call: Call) -> dict[str, Any]:
    """Apply one layer to a tree."""
    from pytest_sandbox.oci.layers.unpack import apply_layer

    _many_descriptors()
    layer = apply_layer(
        call.fds[0],
        call.fds[1],
        _bounds(call),
        layer=call.args.get("layer", "layer"),
        diff_id=call.args.get("diff_id"),
        like=call.fds[2] if len(call.fds) > 2 else None,
        first=bool(call.args.get("first")),
    )
    return layer.told()


def ahead(call: Call) -> dict[str, Any]:
    """Apply one layer to its upper folder, before the layers below it are there."""
    from pytest_sandbox.oci.layers.ahead import apply_ahead

    _many_descriptors()
    return apply_ahead(
        call.fds[0],
        call.fds[1],
        _bounds(call),
        layer=call.args.get("layer", "layer"),
        diff_id=call.args.get("diff_id"),
    )


def settle(call: Call) -> dict[str, Any]:
    """Complete such an upper folder from the layers below it."""
    from pytest_sandbox.oci.layers.settle import settle

    return {"redo": settle(call.fds[0], call.fds[1], call.fds[2], call.args["pending"])}


def diff(call: Call) -> dict[str, Any]:
    """Write a tree as a layer."""
    from pytest_sandbox.oci.layers.diff import write_layer
    from pytest_sandbox.oci.layers.pack import Packer

    _many_descriptors()
    packer = Packer(call.fds[1], call.args.get("pack", ""))
    try:
        overlay = bool(call.args["overlay"])
        sockets = write_layer(call.fds[0], packer, _bounds(call), overlay=overlay)
        return {**packer.finish()._asdict(), "sockets": sockets}
    finally:
        packer.close()


def remove(call: Call) -> dict[str, Any]:
    """Remove files and whole trees."""
    from pytest_sandbox.oci.layers.removal import remove_tree

    _many_descriptors()
    removed = 0
    for name in call.args["names"]:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(call.fds[0], name)
            removed += 1
    return {"removed": removed}


def put(call: Call) -> dict[str, Any]:
    """Unpack an archive below a folder of a tree."""
    from pytest_sandbox.oci.layers.transfer import put

    return put(call.fds[0], call.fds[1], call.args["into"], _bounds(call))._asdict()


def get(call: Call) -> dict[str, Any]:
    """Write a file or folder of a tree as an archive."""
    from pytest_sandbox.oci.layers.transfer import get

    _many_descriptors()
    return {"entries": get(call.fds[0], call.fds[1], call.args["path"], _bounds(call))}


def stat(call: Call) -> dict[str, Any]:
    """Say what a file of a tree is."""
    from pytest_sandbox.oci.layers.transfer import look_at

    return look_at(call.fds[0], call.args["path"])


def changes(call: Call) -> dict[str, Any]:
    """Say what an overlay's upper folder changes."""
    from pytest_sandbox.oci.layers.changes import changes

    _many_descriptors()
    return changes(call.fds[0], call.fds[1], _bounds(call))._asdict()
