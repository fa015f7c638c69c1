"""Jobs of the supervisor that make the layers of a build (`where="host"`).

Each step has a folder with `upper` and `work` in it, as a sandbox has. Every job takes `layers`
(the folders of the layers below, the lowest first), `folder` (the step's) and `snapshotter`. All
raise OSError and SandboxError.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from pytest_sandbox.oci.layers import transfer, trees, xattrs
from pytest_sandbox.oci.layers.diff import write_layer
from pytest_sandbox.oci.layers.folders import Folders
from pytest_sandbox.oci.layers.members import FILE, Member
from pytest_sandbox.oci.layers.pack import Packer
from pytest_sandbox.oci.layers.root import open_in_root, tidy
from pytest_sandbox.oci.layers.writer import END, header, padding
from pytest_sandbox.oci.snapshots import find_snapshotter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_sandbox.oci.snapshots import Snapshotter
    from pytest_sandbox.oci.supervisor import Call

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CONFINED: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
_MOUNTED: Final = ("/dev", "/proc", "/sys")
"""The engine makes these folders where an image lacks them."""


def copy(call: Call) -> dict[str, Any]:
    """COPY. fds: a file with all contents, one behind the other. args: `files`, [name below the
    target, size]; `target`; `single`: it is one file, and the target its name, unless a folder is
    there; `root`, the host's ids of the sandboxes' root.
    """
    with _view(call) as root:
        return call.mapped(lambda: _copy(root, call.fds[0], call.args))


def make_folder(call: Call) -> dict[str, Any]:
    """WORKDIR. args: `path`, made where it is missing; `root` as for copy."""
    with _view(call) as root:
        return call.mapped(lambda: _make_folder(root, call.args["path"]))


def seal(call: Call) -> dict[str, Any]:
    """What a step changed becomes the layer folder `target`; the step's own folder goes.

    args: `target`, a new folder on the same file system; `created`, paths that were made for mounts
    of the step; `difference`: the layer is what the step changed (else the whole tree, and neither
    `empty` nor a digest is found out). Gives `empty` (nothing was changed, there is no layer), or
    the `diff_id` and the `size` of the layer's archive.
    """
    args = call.args
    folder, target = Path(args["folder"]), Path(args["target"])
    with _opened([*args["layers"], folder / "upper"]) as (*lowers, upper):
        find_snapshotter(args["snapshotter"]).settle(upper)
        told = call.mapped(lambda: _seal(lowers, upper, args))
    if not told["empty"]:
        target.mkdir(mode=0o700)
        (folder / "upper").rename(target / "diff")
    shutil.rmtree(folder)
    return told


# --- the file system of a step --------------------------------------------------------------------


@contextlib.contextmanager
def _opened(folders: Iterable[str | Path]) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        found = []
        for folder in folders:
            found.append(os.open(folder, _FOLDER))
            stack.callback(os.close, found[-1])
        yield found


@contextlib.contextmanager
def _view(call: Call) -> Iterator[int]:
    """The layers below a new upper folder, mounted: a descriptor of the root."""
    args = call.args
    folder, place = Path(args["folder"]), Path(call.room, f"build-{os.getpid()}")
    parts = folder / "upper", folder / "work"
    folder.mkdir(mode=0o700)
    for part in parts:
        part.mkdir(mode=0o755)
        if call.ids is not None:
            os.chown(part, *args["root"])
    snapshotter = find_snapshotter(args["snapshotter"])
    place.mkdir(mode=0o711)
    with _opened([*args["layers"], *parts]) as (*lowers, upper, work):
        if snapshotter.layered:
            snapshotter.prepare(lowers, upper)
        else:
            call.mapped(lambda: _prepared(snapshotter, lowers, upper))
        snapshotter.mount(lowers, upper, work, str(place), volatile=True)
        try:
            root = os.open(place, _READ)
            try:
                yield root
            finally:
                os.close(root)
        finally:
            snapshotter.unmount(str(place), work)
            place.rmdir()


def _prepared(snapshotter: Snapshotter, lowers: Sequence[int], upper: int) -> dict[str, Any]:
    snapshotter.prepare(lowers, upper)
    return {}


# --- as root of the ids ---------------------------------------------------------------------------


def _copy(root: int, contents: int, args: Mapping[str, Any]) -> dict[str, Any]:
    files, into = args["files"], args["target"]
    if args["single"] and not _is_folder(root, into):
        into, _, name = into.rstrip("/").rpartition("/")
        files = [[name, files[0][1]]]
    archive = os.memfd_create("pytest-sandbox-copy")
    at = 0
    with os.fdopen(archive, "wb", closefd=False) as out:
        for name, size in files:
            path = os.fsencode(f"{into}/{name}").lstrip(b"/")
            # Nothing but the content counts: the same files give the same layer.
            out.write(header(Member(path, FILE, mode=0o644, size=size)))
            out.write(os.pread(contents, size, at))
            out.write(padding(size))
            at += size
        out.write(END)
    os.lseek(archive, 0, os.SEEK_SET)
    transfer.put(archive, root, "/", DEFAULT_BOUNDS)
    os.close(archive)
    return {}


def _is_folder(root: int, path: str) -> bool:
    try:
        os.close(open_in_root(root, path, os.O_PATH | os.O_DIRECTORY))
    except OSError:
        return False
    return True


def _make_folder(root: int, path: str) -> dict[str, Any]:
    folders = Folders(root)
    try:
        folders.walk(tidy(os.fsencode(path)), make=True)
    finally:
        folders.close()
    return {}


def _seal(lowers: Sequence[int], upper: int, args: Mapping[str, Any]) -> dict[str, Any]:
    top = os.open(".", _READ, dir_fd=upper)
    try:
        for path in (*reversed(args["created"]), *_MOUNTED):
            _take_away(lowers, top, path)
        if not args["difference"]:
            return {"empty": False, "diff_id": "", "size": 0}
        if not trees.names(top) and _alike(os.fstat(top), os.fstat(lowers[-1])):
            return {"empty": True}
        return {"empty": False, **_digest(top)}
    finally:
        os.close(top)


def _digest(top: int) -> dict[str, Any]:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    packer = Packer(null)
    try:
        write_layer(top, packer, DEFAULT_BOUNDS, overlay=True)
        packed = packer.finish()
    finally:
        packer.close()
        os.close(null)
    return {"diff_id": packed.diff_id, "size": packed.size}


def _take_away(lowers: Sequence[int], top: int, path: str) -> None:
    """Remove a mount point that the engine made, unless something was put into it."""
    parent, _, name = path.strip("/").rpartition("/")
    try:
        folder = linux.openat2(top, parent or ".", _READ, resolve=_CONFINED)
    except OSError:
        return  # nothing there was changed
    try:
        times = os.fstat(folder)
        with contextlib.suppress(OSError):
            found = os.lstat(name, dir_fd=folder)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=folder)
            elif stat.S_ISREG(found.st_mode) and not found.st_size:
                os.unlink(name, dir_fd=folder)
        os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
        if not parent or trees.names(folder) or not _as_below(lowers, folder, parent):
            return
    finally:
        os.close(folder)
    _take_away(lowers, top, parent)  # it was copied up for the mount point alone


def _as_below(lowers: Sequence[int], folder: int, path: str) -> bool:
    """Whether an empty folder of the upper one says nothing that the layers below do not say."""
    if xattrs.split(folder)[1].get("opaque") == b"y":
        return False
    for lower in reversed(lowers):
        try:
            below = linux.openat2(lower, path, os.O_PATH | os.O_DIRECTORY, resolve=_CONFINED)
        except OSError:
            continue
        try:
            mine, theirs = os.fstat(folder), os.fstat(below)
            return _alike(mine, theirs) and mine.st_mtime_ns == theirs.st_mtime_ns
        finally:
            os.close(below)
    return False


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
