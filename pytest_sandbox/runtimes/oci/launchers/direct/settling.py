"""A blank takes a root and becomes process 1 of its sandbox: what it is told to do for that."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.runtimes.oci.launchers.direct import hands, privileges
from pytest_sandbox.runtimes.oci.launchers.direct.program import BULK, CHANNEL
from pytest_sandbox.runtimes.oci.launchers.direct.staging import FILES, HERE, split, tops
from pytest_sandbox.runtimes.oci.launchers.direct.tables import (
    NOBODY,
    Failed,
    Table,
    capability_sets,
    given,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_INSIDE: Final = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
_ATTACH: Final = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
_TIMES: Final = 72
"""Where the times of access and change are in a struct stat."""


class Settling:
    """That of like sandboxes: what is the same for all is written once. `order` has `hostname`,
    `read_only` and `mounts`.
    """

    def __init__(self, stage: str, profile: Profile, order: Mapping[str, Any]) -> None:
        self._stage = stage
        self._profile = profile
        self._order = order
        system = [{"destination": path, "folder": True, "type": "system"} for path in tops(profile)]
        self._mounts = [*system, *order["mounts"]]
        self._missing: set[int] = set()
        """Mounts whose place was not there once: it is made for the next one without a look."""
        self._whole = self._table(0, None)

    def settle(self, end: socket.socket, descriptors: Sequence[int]) -> None:
        """`descriptors` are the root's tree, then that of each bind. Raises OSError for what could
        not be done, and where process 1 is gone.
        """
        table, places = self._whole
        tried: set[int] = set()
        while True:
            try:
                hands.tell(end, table, descriptors)
            except Failed as wrong:
                at = places.get(wrong.row)
                if at is None or wrong.errno != errno.ENOENT or at in tried:
                    raise
                tried.add(at)
                root = self._root(end)
                mount = self._mounts[at]
                _make_place(end, root, mount["destination"], folder=mount["folder"])
                table, places = self._table(at, root)
                self._missing.add(at)
                self._whole = self._table(0, None)
            else:
                return

    # --- the table --------------------------------------------------------------------------

    def _table(self, first: int, root: int | None) -> tuple[Table, dict[int, int]]:
        """All that is to be done from mount `first` on, and which rows look for the place of which
        mount. `root` is the descriptor of the root, if that is mounted already.
        """
        table, places, stage = Table(), {}, self._stage
        at: int = root if root is not None else self._mount_root(table)
        binds = sum(1 for one in self._mounts[:first] if _is_bind(one))
        for number, mount in enumerate(self._mounts[first:], first):
            if number in self._missing and root is None:
                _make(table, at, mount["destination"], folder=mount["folder"])
            places[len(table.calls)] = number
            target = _find(table, at, mount["destination"], folder=mount["folder"])
            if mount["type"] == "system":
                source = _b(stage + mount["destination"])
                table.call("move_mount", HERE, source, target, b"", linux.MOVE_MOUNT_T_EMPTY_PATH)
            elif mount["type"] == "tmpfs":
                self._tmpfs(table, mount, target)
            elif "text" in mount:
                self._text(table, mount, number, target)
            else:
                binds += 1
                table.call("move_mount", given(binds), b"", target, b"", _ATTACH)
            table.call("close", target)
        self._pivot(table, at)
        self._confine(table)
        return table, places

    def _mount_root(self, table: Table) -> int:
        root = _b(f"{self._stage}/root")
        table.call("move_mount", given(0), b"", HERE, root, linux.MOVE_MOUNT_F_EMPTY_PATH)
        # Opened anew: from here on it is the mounted root, in this namespace.
        return table.call("openat", HERE, root, _FOLDER)

    def _tmpfs(self, table: Table, mount: Mapping[str, Any], target: int) -> None:
        source = _b(f"{self._stage}/new")
        table.call("mkdirat", HERE, source, 0o755, may=(errno.EEXIST,))
        flags, data = split(mount["options"])
        table.call("mount", b"tmpfs", source, b"tmpfs", flags, _b(data))
        table.call("move_mount", HERE, source, target, b"", linux.MOVE_MOUNT_T_EMPTY_PATH)

    def _text(self, table: Table, mount: Mapping[str, Any], number: int, target: int) -> None:
        """A small file of ours."""
        path = _b(f"{self._stage}/{FILES}/{number}")
        data = _b(mount["text"])
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        file = table.call("openat", HERE, path, flags, 0o644)
        table.call("write", file, table.place(data), len(data))
        table.call("close", file)
        clone = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
        tree = table.call("open_tree", HERE, path, clone)
        table.call("move_mount", tree, b"", target, b"", _ATTACH)
        table.call("close", tree)

    def _pivot(self, table: Table, root: int) -> None:
        if self._order["read_only"]:
            again = table.call("openat", HERE, _b(f"{self._stage}/root"), _FOLDER)
            attributes = table.place(struct.pack("=QQQQ", linux.MOUNT_ATTR_RDONLY, 0, 0, 0))
            table.call("mount_setattr", again, b"", linux.AT_EMPTY_PATH, attributes, 32)
            table.call("close", again)
        table.call("fchdir", root)
        table.call("pivot_root", b".", b".")
        table.call("umount2", b".", linux.MNT_DETACH)  # the old root is on top of the new one
        table.call("chdir", b"/")
        table.call("close", root)

    def _confine(self, table: Table) -> None:
        """What process 1 gives up when it has its root.

        It keeps CAP_SYS_ADMIN of its user namespace, so that it can put the last filter on each
        command. That also keeps commands away from its memory and descriptors: ptrace(2) wants all
        the capabilities of what is looked at. Where it is guarded, it is closed to all but the
        host's root, too.
        """
        process = self._profile.process
        if self._order["hostname"]:
            name = _b(self._order["hostname"])
            table.call("sethostname", name, len(name))
        table.call("umask", process["user"].get("umask", 0o022))
        held = privileges.bits(process["capabilities"]["bounding"]) | privileges.SYS_ADMIN
        table.call("capset", *capability_sets(table, held, self._profile.inheritable))
        if process["noNewPrivileges"]:
            table.call("prctl", linux.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        table.call("prctl", linux.PR_SET_DUMPABLE, 0 if self._profile.guarded else 1)

    # --- a place that is missing ------------------------------------------------------------

    def _root(self, end: socket.socket) -> int:
        table = Table()
        table.call("openat", HERE, _b(f"{self._stage}/root"), _FOLDER)
        found = hands.tell(end, table)[0]
        assert found is not None
        return found


def _make_place(end: socket.socket, root: int, path: str, *, folder: bool) -> None:
    """A mount point; links are followed inside the root only (what is below /dev is made here,
    all else was looked at before the start).
    """
    parent = path.lstrip("/").rpartition("/")[0]
    if parent:
        look = Table()
        look.call("close", _find(look, root, parent, folder=True))
        try:
            hands.tell(end, look)
        except Failed as wrong:
            if wrong.errno != errno.ENOENT:
                raise
            _make_place(end, root, parent, folder=True)
    table = Table()
    _make(table, root, path, folder=folder)
    hands.tell(end, table)


def _make(table: Table, root: int, path: str, *, folder: bool) -> None:
    """Make one, in a folder that should be there."""
    parent, _, last = path.lstrip("/").rpartition("/")
    none = (errno.ENOENT, errno.EBADF)
    holder = _find(table, root, parent or ".", folder=True, may=none)
    table.call("fstat", holder, BULK, may=none)
    if folder:
        table.call("mkdirat", holder, _b(last), 0o755, may=(*none, errno.EEXIST))
    else:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
        made = table.call("openat", holder, _b(last), flags, 0o644, may=(*none, errno.EEXIST))
        table.call("close", made, may=(errno.EBADF,))
    # The time of the folder around it is a nicety.
    table.call("utimensat", holder, b".", BULK + _TIMES, 0, may=None)
    table.call("close", holder, may=none)


def hand_over(end: socket.socket, control: int) -> None:
    """From here on process 1 takes what comes through `control`."""
    table = Table()
    table.call("dup3", given(0), CHANNEL, os.O_CLOEXEC)
    hands.send(end, table.message(NOBODY), [control])


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return mount["type"] == "bind" and "text" not in mount


def _find(table: Table, root: int, path: str, *, folder: bool, may: tuple[int, ...] = ()) -> int:
    """What is there, as a descriptor: links are followed inside the root only."""
    flags = os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if folder else 0)
    how = table.place(struct.pack("=QQQ", flags, 0, _INSIDE))
    return table.call("openat2", root, _b(path.lstrip("/") or "."), how, 24, may=may)


def _b(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
