"""What the supervisor's children do with layers (`where="mapped"`). Folders come as descriptors.

apply
    fds: the packed layer (file or pipe), the tree's folder [, `like`: the diff folder of the layer
    below, whose mode, owner, attributes and times the tree's root takes first].
    args: `layer` (its name in messages), `diff_id` (None: not checked), `bounds` (a dict of
    Bounds' fields; None: the defaults).
    Gives `diff_id`, `size` (unpacked bytes), `packed` (bytes read), `entries`, `devices`,
    `xattrs`, `first_xattr` (see Applied). Raises InvalidImage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor.jobs import Call


def _bounds(call: Call) -> Bounds:
    told = call.args.get("bounds")
    return Bounds(**told) if told else DEFAULT_BOUNDS


def apply(call: Call) -> dict[str, Any]:
    """Apply one layer to a tree."""
    from pytest_sandbox.oci.layers.unpack import apply_layer

    layer = apply_layer(
        call.fds[0],
        call.fds[1],
        _bounds(call),
        layer=call.args.get("layer", "layer"),
        diff_id=call.args.get("diff_id"),
        like=call.fds[2] if len(call.fds) > 2 else None,
    )
    told = {"diff_id": layer.diff_id, "size": layer.size, "packed": layer.packed}
    return told | layer.applied._asdict()
