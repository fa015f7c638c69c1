"""What every snapshotter does.

Layers are descriptors of folders, the lowest first. A root file system comes to be in two steps:
`prepare` as root of the sandboxes' ids (job where="mapped"), `mount` where mounts can be made (job
where="host"). Removing `upper` and `work` afterwards is the caller's, after `unmount`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from pytest_sandbox.errors import RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES: Final = ("overlay", "fuse-overlayfs", "reflink", "copy")
"""Those that are tried by themselves, the preferred one first."""
ALL: Final = (*NAMES, "hardlink")
_CLASSES: Final = {
    "overlay": "overlay:Overlay",
    "fuse-overlayfs": "fuse:FuseOverlay",
    "reflink": "copies:Reflink",
    "copy": "copies:Copy",
    "hardlink": "copies:Hardlink",
}


class SnapshotterFailed(RuntimeUnavailable):
    """A snapshotter cannot do what it was asked on this machine or file system."""


class Snapshotter(Protocol):
    """One way to make a root file system from stored layers.

    `layered`: each layer holds what it changes, and an upper folder gets what the sandbox changes;
    else each stored layer is the whole tree, and `upper` becomes a copy of the top one. `flavour`
    says how a layer's differences are written: it is recorded with the layer, and layers of
    different flavours do not go together. `writable`: false where the cache would be written to.
    """

    name: str
    layered: bool
    flavour: str
    writable: bool

    def prepare(self, lowers: Sequence[int], upper: int) -> None:
        """Fill the empty folder `upper`; as root of the sandboxes' ids. Raises OSError."""

    def mount(
        self,
        lowers: Sequence[int],
        upper: int | None,
        work: int | None,
        target: str,
        *,
        volatile: bool = False,
        read_only: bool = False,
    ) -> None:
        """Mount the root file system at the folder `target`.

        `upper` was prepared; `work` is a folder beside it, for the snapshotter alone. Without
        `upper` the layers alone are shown, read-only. `volatile`: what is written is thrown away
        with the sandbox, and need not reach the disk. Raises OSError, SnapshotterFailed.
        """

    def unmount(self, target: str, work: int | None = None) -> None:
        """Undo `mount`, so that the same upper can be mounted again; `work` is emptied, since only
        this side may look into it. Raises OSError.
        """

    def settle(self, upper: int) -> None:
        """After `unmount`, on the same side: write what `upper` holds as `flavour` says, before it
        is read or becomes a layer. Raises OSError.
        """


def find_snapshotter(name: str) -> Snapshotter:
    """The snapshotter of a name. Raises UsageError for an unknown one."""
    if name not in _CLASSES:
        msg = f"{name!r} is no snapshotter"
        raise UsageError(msg, next_step=f"expected is one of {', '.join(ALL)}")
    module, _, wanted = _CLASSES[name].partition(":")
    found: Snapshotter = getattr(import_module(f"pytest_sandbox.oci.snapshots.{module}"), wanted)()
    return found
