"""overlayfs, by mount(2) (kernel documentation, filesystems/overlayfs).

Always with `userxattr`: the differences are the same whether root or an ordinary user made them.
Layers are named by descriptor numbers relative to /proc/self/fd, so neither their number (up to
500) nor what their paths look like matters to the one page that mount(2) takes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.layers import xattrs
from pytest_sandbox.oci.snapshots.base import SnapshotterFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_LAYERS: Final = 500
"""The kernel's limit (OVL_MAX_STACK)."""
_OPTIONS: Final = "userxattr,index=off,metacopy=off"
_PAGE: Final = 4095


class Overlay:
    """overlayfs of the kernel."""

    name = "overlay"
    layered = True
    flavour = "userxattr"
    writable = True

    def prepare(self, lowers: Sequence[int], upper: int) -> None:
        """The root folder of the new tree is the upper one: it gets the attributes of the top
        layer's.
        """
        copy_root(lowers[-1], upper)

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
        """See Snapshotter.mount."""
        check_number(lowers)
        flags = linux.MS_NODEV | (linux.MS_RDONLY if read_only or upper is None else 0)
        if upper is None and len(lowers) == 1:
            # overlayfs wants two layers. One alone has no whiteouts, so a bind shows the same.
            bind(lowers[0], target, read_only=True)
            return
        if upper is None:
            with in_this_namespace(lowers) as layers:
                _mount(target, flags, layers, "")
            return
        if work is None:
            msg = "an overlay with an upper folder needs a work folder"
            raise ValueError(msg)
        # A work folder that was used as volatile is refused by the kernel.
        empty(work)
        with in_this_namespace([*lowers, upper, work]) as (*layers, top, room):
            more = f",upperdir={top},workdir={room}{',volatile' if volatile else ''}"
            _mount(target, flags, layers, more)

    def detached(self, lowers: Sequence[int], upper: int, work: int) -> int:
        """As `mount` (volatile), but nowhere: the mount as a descriptor. The folders were opened in
        this process's mount namespace. Raises OSError where the kernel's newer calls lack (Linux
        6.8 names layers one by one).
        """
        check_number(lowers)
        empty(work)
        options: list[tuple[str, str | None]] = [
            ("lowerdir+", str(layer)) for layer in reversed(lowers)
        ]
        options += [("upperdir", str(upper)), ("workdir", str(work)), ("userxattr", None)]
        options += [("index", "off"), ("metacopy", "off"), ("volatile", None)]
        with _names_are_descriptors():
            return linux.detached_mount("overlay", options, linux.MOUNT_ATTR_NODEV)

    def unmount(self, target: str, work: int | None = None) -> None:
        """See Snapshotter.unmount."""
        linux.umount(target, linux.MNT_DETACH)
        if work is not None:
            with contextlib.suppress(OSError):
                # A process in the mount keeps its work folder: the next mount empties it.
                empty(work)

    def settle(self, upper: int) -> None:
        """The kernel wrote the flavour itself."""


def _mount(target: str, flags: int, layers: Sequence[int], more: str) -> None:
    data = f"lowerdir={':'.join(map(str, reversed(layers)))},{_OPTIONS}{more}"
    if len(data) > _PAGE:
        what = f"the names of {len(layers)} layers are longer than a page"
        raise SnapshotterFailed(what, blame=Blame.HOST, next_step="close unused descriptors")
    with _names_are_descriptors():
        linux.mount("overlay", target, "overlay", flags, data)


@contextlib.contextmanager
def _names_are_descriptors() -> Iterator[None]:
    """The current folder is one where a descriptor's number is a path."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir("/proc/self/fd")
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def check_number(lowers: Sequence[int]) -> None:
    """Raises SnapshotterFailed for none or for more than overlayfs can stack."""
    if not 0 < len(lowers) <= MOST_LAYERS:
        what = f"an overlay can have 1 to {MOST_LAYERS} layers, this one has {len(lowers)}"
        step = "squash the image's layers, or use the snapshotter copy"
        raise SnapshotterFailed(what, next_step=step)


def open_layers(folder: int, names: Sequence[str]) -> list[int]:
    """Descriptors of `names` below an open folder, for `mount`; as many as overlayfs can stack.

    A message to a job carries 253 descriptors at most, so the job opens the layers itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if len(names) + 64 > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return [os.open(name, flags, dir_fd=folder) for name in names]


@contextlib.contextmanager
def in_this_namespace(folders: Sequence[int]) -> Iterator[list[int]]:
    """The same folders, opened in this process's mount namespace: the kernel mounts only those.

    What was sent by another process comes from the mounts of that one. Raises OSError (ESTALE
    where its path leads elsewhere here).
    """
    opened: list[int] = []
    try:
        for folder in folders:
            path = str(Path(f"/proc/self/fd/{folder}").readlink())
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened.append(os.open(path, flags))
            if not os.path.samestat(os.fstat(folder), os.fstat(opened[-1])):
                raise OSError(errno.ESTALE, "another folder is at this path", path)
        yield opened
    finally:
        for descriptor in opened:
            os.close(descriptor)


def bind(folder: int, target: str, *, read_only: bool = False) -> None:
    """Show an open folder at `target`, without the mounts below it; device nodes do not work."""
    with in_this_namespace([folder]) as (here,):
        linux.mount(f"/proc/self/fd/{here}", target, "", linux.MS_BIND)
    kept = _locked(target) | linux.MS_NODEV | (linux.MS_RDONLY if read_only else 0)
    linux.mount("none", target, "", linux.MS_BIND | linux.MS_REMOUNT | kept)


def _locked(target: str) -> int:
    """The flags that the mount has: a remount in a user namespace must repeat them."""
    found = os.statvfs(target).f_flag
    names = (("ST_NOSUID", linux.MS_NOSUID), ("ST_NOEXEC", linux.MS_NOEXEC))
    times = (("ST_NOATIME", 1024), ("ST_NODIRATIME", 2048), ("ST_RELATIME", 1 << 21))
    return sum(flag for name, flag in (*names, *times) if found & getattr(os, name))


def copy_root(source: int, target: int) -> None:
    """Give the folder `target` mode, owner, times and attributes of the folder `source`."""
    at, to = reopen(source), reopen(target)
    try:
        found = os.fstat(at)
        os.fchown(to, found.st_uid, found.st_gid)
        xattrs.write(to, xattrs.read(at))
        os.fchmod(to, stat.S_IMODE(found.st_mode))
        os.utime(to, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(at)
        os.close(to)


def reopen(folder: int) -> int:
    """A descriptor that can be read from: those for mount(2) may be O_PATH."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)


def empty(folder: int) -> None:
    """Remove everything in an open folder. Raises OSError."""
    descriptor = reopen(folder)
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208
            try:
                os.unlink(name, dir_fd=descriptor)
            except (IsADirectoryError, PermissionError):
                _remove_tree(name, descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(name: str, folder: int) -> None:
    import shutil  # heavy; a new work folder is empty

    # overlayfs makes its folders with mode 000: the owner may look in, whatever its rights.
    with contextlib.suppress(OSError):
        os.chmod(name, 0o700, dir_fd=folder)
    shutil.rmtree(name, dir_fd=folder)
