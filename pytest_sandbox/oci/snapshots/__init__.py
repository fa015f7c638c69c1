"""Root file systems of sandboxes over stored layers: overlay, or a copy of the whole tree."""

from __future__ import annotations

from pytest_sandbox.oci.snapshots.base import Snapshotter, SnapshotterFailed, find_snapshotter

__all__ = ["Snapshotter", "SnapshotterFailed", "find_snapshotter"]
