"""In a blank: take a root and become process 1 of its sandbox."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.launchers.direct import privileges
from pytest_sandbox.runtimes.oci.launchers.direct.agent import Agent
from pytest_sandbox.runtimes.oci.launchers.direct.staging import FILES, split, tops

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile
    from pytest_sandbox.runtimes.oci.launchers.direct.quick import Commands

_HERE: Final = -100  # AT_FDCWD
_INSIDE: Final = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
_ATTACH: Final = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH


def settle(
    channel: socket.socket, profile: Profile, commands: Commands, stage: str, group: int
) -> NoReturn:
    """Wait for the order, take the root, serve. It ends with its channel.

    The order's descriptors: the root's tree, the control channel, then the tree of each bind.
    """
    if profile.network:
        privileges.loopback_up()
    privileges.confine_blank(profile.bounding)
    agent = Agent(commands, group, guarded=profile.guarded)
    messages.send(channel, {"staged": True})
    received = messages.receive(channel)
    if received is None:
        os._exit(0)
    order, (tree, control, *trees) = received
    _take_root(stage, profile, order, tree, trees)
    with contextlib.suppress(OSError):  # its maker may not wait for this
        messages.send(channel, {"settled": True})
    linux.umount(".", linux.MNT_DETACH)  # the old root is on top of the new one
    os.chdir("/")
    if order["hostname"]:
        socket.sethostname(order["hostname"])
    os.umask(profile.process["user"].get("umask", 0o022))
    privileges.confine_agent(profile.process, guarded=profile.guarded)
    with contextlib.suppress(OSError):
        messages.send(channel, {"confined": True})
    channel.close()
    linux.close_all_but([control, *agent.descriptors])
    with messages.end_of(control) as end:
        agent.serve(end)
    os._exit(0)


def _take_root(
    stage: str, profile: Profile, order: Mapping[str, Any], tree: int, trees: Sequence[int]
) -> None:
    linux.move_mount(tree, "", _HERE, f"{stage}/root", linux.MOVE_MOUNT_F_EMPTY_PATH)
    # Opened anew: from here on it is the mounted root, in this namespace.
    root = os.open(f"{stage}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for path in tops(profile):
        target = _place(root, path, folder=True)
        linux.move_mount(_HERE, stage + path, target, "", linux.MOVE_MOUNT_T_EMPTY_PATH)
        os.close(target)
    left = iter(trees)
    for number, mount in enumerate(order["mounts"]):
        target = _place(root, mount["destination"], folder=mount["folder"])
        if mount["type"] == "tmpfs":
            source = f"{stage}/new"
            os.makedirs(source, exist_ok=True)  # noqa: PTH103
            flags, data = split(mount["options"])
            linux.mount("tmpfs", source, "tmpfs", flags, data)
            linux.move_mount(_HERE, source, target, "", linux.MOVE_MOUNT_T_EMPTY_PATH)
        elif "text" in mount:
            file = _write(f"{stage}/{FILES}/{number}", mount["text"])
            linux.move_mount(file, "", target, "", _ATTACH)
            os.close(file)
        else:
            linux.move_mount(next(left), "", target, "", _ATTACH)
        os.close(target)
    if order["read_only"]:
        again = os.open(f"{stage}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.mount_setattr(again, set=linux.MOUNT_ATTR_RDONLY)
        os.close(again)
    os.fchdir(root)
    linux.pivot_root(".", ".")


def _write(path: str, text: str) -> int:
    """A file of ours, as a mount that is nowhere yet."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    os.write(descriptor, text.encode("utf-8", "surrogateescape"))
    os.close(descriptor)
    return linux.open_tree(_HERE, path, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)


def _place(root: int, path: str, *, folder: bool) -> int:
    """A mount point as a descriptor, made where it is missing; links are followed inside the root
    only (what is below /dev is made here, all else was looked at before the start).
    """
    flags = os.O_PATH | (os.O_DIRECTORY if folder else 0)
    name = path.lstrip("/")
    try:
        return linux.openat2(root, name, flags, resolve=_INSIDE)
    except FileNotFoundError:
        parent, _, last = name.rpartition("/")
        holder = _place(root, parent, folder=True) if parent else os.dup(root)
        before = os.fstat(holder)
        try:
            if folder:
                os.mkdir(last, 0o755, dir_fd=holder)
            else:
                made = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(last, made, 0o644, dir_fd=holder))
            with contextlib.suppress(OSError):  # the time of the folder around it is a nicety
                times = (before.st_atime_ns, before.st_mtime_ns)
                os.utime(".", ns=times, dir_fd=holder)
            return linux.openat2(holder, last, flags, resolve=_INSIDE)
        finally:
            os.close(holder)
