"""fuse-overlayfs: an overlay where the kernel's is not to be had. It needs /dev/fuse.

It reads the kernel's marks of deleted entries, but writes some of its own; `settle` rewrites them.
Known of Debian's 1.10: changing a named pipe of a layer is EIO.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.findings import install
from pytest_sandbox.oci.snapshots.base import SnapshotterFailed
from pytest_sandbox.oci.snapshots.overlay import bind, check_number, copy_root, empty, reopen

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM: Final = "fuse-overlayfs"
_FOLDERS: Final = "/usr/local/bin:/usr/bin:/bin"
_WAIT: Final = 10.0
_OPTIONS: Final = "timeout=0"
"""Entries are asked for each time: with its default, Debian's 1.10 shows files of a removed folder
in the new one of that name.
"""
_OPAQUE_FILES: Final = frozenset({".wh..wh..opq", ".wh..opq"})
_OPAQUE_MARKS: Final = frozenset({"user.fuseoverlayfs.opaque", "trusted.overlay.opaque"})
_OWN_MARKS: Final = ("user.fuseoverlayfs.", "trusted.overlay.")
_WHITEOUT: Final = ".wh."


class FuseOverlay:
    """fuse-overlayfs, one process for each mount; it ends with the mount or the supervisor."""

    name = "fuse-overlayfs"
    layered = True
    flavour = "userxattr"
    writable = True

    def prepare(self, lowers: Sequence[int], upper: int) -> None:
        """As for overlayfs."""
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
        if upper is None and len(lowers) == 1:
            bind(lowers[0], target, read_only=True)
            return
        program = shutil.which(PROGRAM, path=f"{os.environ.get('PATH', '')}:{_FOLDERS}")
        if program is None:
            msg = f"{PROGRAM} is not installed"
            raise SnapshotterFailed(msg, next_step=install(PROGRAM))
        options = f"{_OPTIONS},lowerdir=" + ":".join(
            f"/proc/self/fd/{one}" for one in reversed(lowers)
        )
        kept = list(lowers)
        if upper is not None:
            if work is None:
                msg = "an overlay with an upper folder needs a work folder"
                raise ValueError(msg)
            empty(work)
            options += f",upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work}"
            options += ",volatile" if volatile else ""
            kept += [upper, work]
        if read_only or upper is None:
            options += ",ro"
        _start([program, "-f", "-o", options, target], kept, target)

    def unmount(self, target: str, work: int | None = None) -> None:
        """See Snapshotter.unmount."""
        linux.umount(target, linux.MNT_DETACH)
        if work is not None:
            with contextlib.suppress(OSError):
                empty(work)

    def settle(self, upper: int) -> None:
        """Turn the marks of fuse-overlayfs into those of overlayfs (userxattr)."""
        top = reopen(upper)
        try:
            for _, folders, files, at in os.fwalk(".", dir_fd=top, follow_symlinks=False):
                _settle(at, [*folders, *files])
        finally:
            os.close(top)


def _settle(folder: int, names: list[str]) -> None:
    marks = [name for name in os.listxattr(folder) if name.startswith(_OWN_MARKS)]
    opaque = bool(_OPAQUE_FILES.intersection(names) or _OPAQUE_MARKS.intersection(marks))
    if opaque:
        os.setxattr(folder, "user.overlay.opaque", b"y")
    times = os.fstat(folder)
    for mark in marks:
        os.removexattr(folder, mark)
    changed = False
    for name in names:
        if name in _OPAQUE_FILES:
            os.unlink(name, dir_fd=folder)
            changed = True
        elif name.startswith(_WHITEOUT):
            os.unlink(name, dir_fd=folder)
            os.mknod(name[len(_WHITEOUT) :], stat.S_IFCHR, os.makedev(0, 0), dir_fd=folder)
            changed = True
        else:
            _settle_file(folder, name)
    if changed:
        os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))


def _settle_file(folder: int, name: str) -> None:
    """Remove marks such as the origin from a file."""
    path = f"/proc/self/fd/{folder}/{name}"
    with contextlib.suppress(OSError):  # whiteouts and links have none
        for mark in os.listxattr(path, follow_symlinks=False):
            if mark.startswith(_OWN_MARKS):
                os.removexattr(path, mark, follow_symlinks=False)


def _start(argv: list[str], kept: list[int], target: str) -> None:
    """Start the program as an orphan that dies with whoever adopts it (the supervisor), and wait
    for its mount.
    """
    before = os.stat(target).st_dev  # noqa: PTH116
    log = os.memfd_create(PROGRAM)
    alive, held = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
        if child == 0:
            _orphan(argv, [*kept, held], log)
        os.close(held)
        held = -1
        os.waitpid(child, 0)
        until, pause = time.monotonic() + _WAIT, 0.002
        os.set_blocking(alive, False)
        while _device(target) in {before, None}:
            if _ended(alive) or time.monotonic() > until:
                os.lseek(log, 0, os.SEEK_SET)
                text = os.read(log, 4096).decode("utf-8", "replace").strip()
                what = f"{PROGRAM} does not mount: {text or 'no word from it'}"
                step = "make /dev/fuse readable and writable for this user (udev does: mode 0666)"
                raise SnapshotterFailed(what, next_step=step)
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
    finally:
        os.close(log)
        os.close(alive)
        if held >= 0:
            os.close(held)


def _orphan(argv: list[str], kept: list[int], log: int) -> Any:
    """In the child: fork again, and let the grandchild become the program."""
    try:
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        os.setsid()
        while os.getppid() == middle:
            time.sleep(0.0005)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        for number, source in enumerate((null, log, log)):
            os.dup2(source, number)
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        os.execv(argv[0], argv)
    except BaseException as wrong:
        with contextlib.suppress(OSError):
            os.write(log, f"{wrong}\n".encode("utf-8", "replace"))
    finally:
        os._exit(127)


def _device(target: str) -> int | None:
    with contextlib.suppress(OSError):  # the mount is there before its program answers
        return os.stat(target).st_dev  # noqa: PTH116
    return None


def _ended(alive: int) -> bool:
    """The program holds the other end: it has ended when there is nothing to wait for."""
    try:
        return os.read(alive, 1) == b""
    except OSError as wrong:
        if wrong.errno not in {errno.EAGAIN, errno.EWOULDBLOCK}:
            raise
        return False
