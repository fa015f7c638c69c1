"""Job of the supervisor: give a running sandbox a new upper folder, on top of the one it had.

What it changed so far can then be a layer: nothing writes to it any more. pivot_root(2) moves the
root of every process whose root is the old one; the sandbox's mounts move along, so it sees no
difference. Processes must not have files open in the old root: the caller has looked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.snapshots.base import find_snapshotter
from pytest_sandbox.oci.spec.root import prepare_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.supervisor import Call

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_HERE: Final = -100  # AT_FDCWD


def switch(call: Call) -> dict[str, Any]:
    """args: `id`, `pid`, `layers` (lowest first, the old upper folder on top), `folder`, `upper`
    and `work` (names in it, to be made), `snapshotter`, `owner` (host uid and gid of the ids'
    root).

    Gives `created`, the mount points that were made. Raises OSError; the sandbox then goes on with
    what it had.
    """
    args = call.args
    folder = Path(args["folder"])
    parts = [folder / args["upper"], folder / args["work"]]
    place = Path(call.room, args["id"])
    fresh = place / args["upper"]
    try:
        for part in parts:
            part.mkdir(mode=0o755)
            if call.ids is not None:
                os.chown(part, *args["owner"])
        place.mkdir(mode=0o711, exist_ok=True)
        fresh.mkdir(mode=0o755)
        tree = _mount(args, parts, fresh)
        mounts = _children(Path(f"/proc/{args['pid']}/mountinfo").read_text(encoding="utf-8"))
        # Only the host's side can look into the sandbox.
        folders = [path for path in mounts if Path(f"/proc/{args['pid']}/root{path}").is_dir()]
        created = call.mapped(lambda: _make_places(fresh, mounts, folders))["created"]
        _in_child(lambda: _move(args["pid"], tree, mounts))
        os.close(tree)
    except BaseException:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            linux.umount(fresh, linux.MNT_DETACH)
        with contextlib.suppress(OSError):
            fresh.rmdir()
    with contextlib.suppress(OSError):  # our own view of the old root
        linux.umount(place / "rootfs", linux.MNT_DETACH)
    return {"created": created}


def _make_places(root: Path, mounts: list[str], folders: list[str]) -> dict[str, Any]:
    """The mount points that the new root lacks: they were no change of the sandbox."""
    files = [path for path in mounts if path not in folders]
    request = {"user": "0:0", "cwd": "/", "folders": folders, "files": files, "covered": mounts}
    opened = os.open(root, _FOLDER)
    try:
        return prepare_root(opened, request).to_json()
    finally:
        os.close(opened)


def _mount(args: dict[str, Any], parts: list[Path], fresh: Path) -> int:
    """The new root as a mount that is nowhere yet."""
    snapshotter = find_snapshotter(args["snapshotter"])
    lowers = [os.open(layer, _FOLDER) for layer in args["layers"]]
    two = [os.open(part, _FOLDER) for part in parts]
    try:
        snapshotter.prepare(lowers, two[0])
        snapshotter.mount(lowers, two[0], two[1], str(fresh), volatile=True)
    finally:
        for descriptor in (*lowers, *two):
            os.close(descriptor)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
    return linux.open_tree(_HERE, fresh, flags)


def _in_child(function: Callable[[], None]) -> None:
    """In a process of its own: it cannot leave the sandbox's mount namespace again."""
    pid = os.fork()
    if pid == 0:
        number = 0
        try:
            function()
        except OSError as wrong:
            number = wrong.errno or 5
        except BaseException:
            number = 5
        os._exit(number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(abs(status), os.strerror(abs(status)))


def _move(pid: int, tree: int, mounts: list[str]) -> None:
    """In the sandbox's mount namespace: the mounts go to the new root, which becomes the root."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(namespace, linux.CLONE_NEWNS)
    linux.move_mount(tree, "", _HERE, "/", linux.MOVE_MOUNT_F_EMPTY_PATH)
    moved: list[str] = []
    try:
        for path in mounts:
            linux.move_mount(_HERE, path, tree, path.lstrip("/"), 0)
            moved.append(path)
        os.fchdir(tree)
        linux.pivot_root(".", ".")
    except BaseException:
        for path in moved:
            linux.move_mount(tree, path.lstrip("/"), _HERE, path, 0)
        os.fchdir(tree)
        linux.umount(".", linux.MNT_DETACH)
        raise
    linux.umount(".", linux.MNT_DETACH)


def _children(text: str) -> list[str]:
    """The mount points right below the root, in their order (proc(5), mountinfo)."""
    rows = [line.split() for line in text.splitlines()]
    root = next(row[0] for row in reversed(rows) if row[4] == "/")
    found = [_plain(row[4]) for row in rows if row[1] == root]
    return [path for path in found if path != "/"]


def _plain(text: str) -> str:
    return text.encode("latin-1", "replace").decode("unicode_escape") if "\\" in text else text
