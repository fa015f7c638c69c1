"""Root file systems that are copies of a whole tree: reflink, copy, and hard links (read-only).

Here a stored layer is the whole tree, not a difference; the top one is copied and shown.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.snapshots.base import SnapshotterFailed
from pytest_sandbox.oci.snapshots.overlay import bind
from pytest_sandbox.oci.snapshots.trees import How, copy_tree

if TYPE_CHECKING:
    from collections.abc import Sequence


class Copy:
    """Every byte copied."""

    name = "copy"
    layered = False
    flavour = "full"
    writable = True
    _how: ClassVar[How] = "copy"

    def prepare(self, lowers: Sequence[int], upper: int) -> None:
        """Copy the whole tree of the top layer. Raises OSError, SnapshotterFailed."""
        try:
            copy_tree(lowers[-1], upper, self._how)
        except OSError as wrong:
            if self._how == "copy" or wrong.errno not in _IMPOSSIBLE:
                raise
            what = f"the file system of the store cannot {self._how}: {wrong.strerror}"
            step = "keep the store on btrfs or XFS, or use the snapshotter copy"
            raise SnapshotterFailed(what, next_step=step) from wrong

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
        """See Snapshotter.mount: the copy is bound to `target`; `work` and `volatile` do not
        matter to it.
        """
        del work, volatile
        shown = lowers[-1] if upper is None else upper
        bind(shown, target, read_only=read_only or upper is None)

    def unmount(self, target: str, work: int | None = None) -> None:
        """See Snapshotter.unmount."""
        del work
        linux.umount(target, linux.MNT_DETACH)

    def settle(self, upper: int) -> None:
        """A whole tree is as it is."""


class Reflink(Copy):
    """Data is shared until it is written to: btrfs, XFS, bcachefs."""

    name = "reflink"
    _how: ClassVar[How] = "reflink"


class Hardlink(Copy):
    """Files are shared for good, so the root is always read-only: an in-place write would change
    the stored layer.
    """

    name = "hardlink"
    writable = False
    _how: ClassVar[How] = "hardlink"

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
        """See Snapshotter.mount. Raises SnapshotterFailed unless it is to be read-only."""
        if upper is not None and not read_only:
            what = "hard links share their files with the stored layer: the root must be read-only"
            raise SnapshotterFailed(what, next_step="ask for a read-only root, or use copy")
        super().mount(lowers, upper, work, target, volatile=volatile, read_only=True)


_IMPOSSIBLE = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EMLINK}
)
