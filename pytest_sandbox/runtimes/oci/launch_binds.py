"""The caller's folders in a sandbox that is started: clones of their mounts, ids shifted."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.spec.mounts import Bind

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.oci.supervisor import Call
    from pytest_sandbox.runtimes.oci.order import MountOrder

_HERE: Final = -100  # AT_FDCWD


def clone_bind(call: Call, mount: MountOrder, place: Path, notes: list[str]) -> Bind:
    """A clone of the caller's folder at `place`, in the room: its own path may be closed to the
    ids. `notes` gets what the caller should know. Raises UsageError for a writable one whose owners
    cannot be shifted.
    """
    bind = Bind.of(mount.source, mount.target, read_only=mount.read_only)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
    tree = linux.open_tree(_HERE, bind.source, flags)
    try:
        if call.ids is not None and not mount.own:
            _give_ids(tree, mount, call.ids, notes)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            place.mkdir(mode=0o711)
        else:
            place.touch(mode=0o644)
        linux.move_mount(tree, "", _HERE, place, linux.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
    return Bind(str(place), bind.target, bind.read_only, bind.folder, bind.locked)


def _give_ids(tree: int, mount: MountOrder, ids: int, notes: list[str]) -> None:
    """What the caller's files say of root is to hold for the sandbox's root."""
    try:
        linux.mount_setattr(
            tree,
            flags=linux.AT_EMPTY_PATH | linux.AT_RECURSIVE,
            set=linux.MOUNT_ATTR_IDMAP,
            userns=ids,
        )
    except OSError as wrong:
        if mount.read_only:
            notes.append(f"{mount.source}: its owners are nobody in the sandbox")
            return
        msg = (
            f"{mount.source} cannot be mounted writable: its file system has no idmapped "
            f"mounts ({wrong.strerror})"
        )
        raise UsageError(msg, next_step=f"mount it with :ro at {mount.target}") from wrong
