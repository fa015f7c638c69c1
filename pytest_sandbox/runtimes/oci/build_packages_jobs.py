"""Jobs of the supervisor for kept package lists and archives (`where="host"`).

A generation is a folder with `ground` (lists) and `archives`, trees of files that belong to the
sandboxes' ids. What a sandbox gets is an overlay over both: whatever it writes is its own. All
raise OSError and SandboxError.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.snapshots import find_snapshotter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.oci.supervisor import Call

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CONFINED: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
_RESOLVED: Final = "resolved"
"""Where a manager writes what the sets consist of, in what is mounted."""
_MOST: Final = 1 << 20
_DEEP: Final = 6
"""Archives lie at most so many folders deep."""


def lay(call: Call) -> dict[str, Any]:
    """Mount a generation for one sandbox, at a place of its own in the room.

    args: `name` of the place; `folder`, a new one, for what the sandbox writes; `generation`, empty
    for a beginning without any; `root`, the host's ids of the sandboxes' root; `before`, a time in
    seconds: later archives are left out (0: none); `folders` to be there. Gives `place`.
    """
    args = call.args
    folder, place = Path(args["folder"]), Path(call.room, args["name"])
    folder.mkdir(mode=0o700)
    parts = [folder / name for name in ("archives", "upper", "work")]
    for part in parts:
        _make(part, call)
    lowers = [parts[0]]
    if args["generation"]:
        generation = Path(args["generation"])
        _link_all(generation / "archives", parts[0], float(args["before"]))
        lowers.append(generation / "ground")
    place.mkdir(mode=0o755)
    overlay = find_snapshotter("overlay")
    with contextlib.ExitStack() as stack:
        opened = []
        for path in (*lowers, *parts[1:]):
            opened.append(os.open(path, _FOLDER))
            stack.callback(os.close, opened[-1])
        *below, upper, work = opened
        overlay.prepare(below, upper)
        try:
            overlay.mount(below, upper, work, str(place), volatile=True)
        except BaseException:
            place.rmdir()
            raise
    for name in args["folders"]:
        if not (place / name).is_dir():
            _make(place / name, call)
    return {"place": str(place)}


def lift(call: Call) -> dict[str, Any]:
    """Undo `lay`; what was written stays in its folder. args: `name`."""
    place = Path(call.room, call.args["name"])
    find_snapshotter("overlay").unmount(str(place))
    place.rmdir()
    return {}


def gather(call: Call) -> dict[str, Any]:
    """Take what a sandbox fetched, in which nothing but the base's own manager has run.

    args: `name` and `folder` as for lay; `archive`, the pattern of archives' names; `generation`,
    the one to add archives to; or else `new`, a folder to make one in, with all that is mounted;
    `sets`: how many were asked for. Gives `bytes`, the size of the generation, and
    `resolved`, what each set consists of (None where nothing was said of it).
    """
    args = call.args
    place, upper = Path(call.room, args["name"]), Path(args["folder"], "upper")
    pattern = re.compile(args["archive"])
    told = [_read(place, f"{_RESOLVED}/{number}") for number in range(args["sets"])]
    if args["new"]:
        target = Path(args["new"])
        for name in ("ground", "archives"):
            _make(target / name, call)
        _copy_lists(place, target / "ground", pattern)
        _link_archives(Path(args["folder"], "archives"), target / "archives", pattern)
    else:
        target = Path(args["generation"])
    _link_archives(upper, target / "archives", pattern)
    size = sum(found.st_size for _, found in _files(target))
    return {"bytes": size, "resolved": told}


# --- files ----------------------------------------------------------------------------------------


def _make(folder: Path, call: Call) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    if call.ids is not None:  # else this is the sandboxes' root already
        os.chown(folder, *call.args["root"])


def _files(top: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below a folder, by their paths in it; links are not followed."""
    with os.scandir(top) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if depth < _DEEP:
                    yield from _files(top / entry.name, f"{path}/", depth + 1)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # another build takes it away
                    yield path, entry.stat(follow_symlinks=False)


def _link(source: Path, target: Path, path: str) -> None:
    """The same file below `target`; one that is there already stays."""
    if "/" in path:
        _like(source, target, path.rpartition("/")[0])
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.link(source / path, target / path, follow_symlinks=False)


def _like(source: Path, target: Path, path: str) -> None:
    """The folders of `path`, as they are in the source."""
    at = ""
    for part in path.split("/"):
        at = f"{at}/{part}" if at else part
        if not (target / at).is_dir():
            found = (source / at).stat()
            with contextlib.suppress(FileExistsError):
                (target / at).mkdir()
                os.chown(target / at, found.st_uid, found.st_gid)
                (target / at).chmod(stat.S_IMODE(found.st_mode))


def _link_all(source: Path, target: Path, before: float) -> None:
    for path, found in _files(source):
        if not before or found.st_ctime < before:
            _link(source, target, path)


def _link_archives(source: Path, target: Path, pattern: re.Pattern[str]) -> None:
    for path, found in _files(source):
        *folders, name = path.split("/")
        if found.st_size and "partial" not in folders and pattern.fullmatch(name):
            _link(source, target, path)


def _copy_lists(place: Path, target: Path, pattern: re.Pattern[str]) -> None:
    """Everything that is no archive, with owners and times: managers go by those."""
    for top, folders, names in os.walk(place):
        here = Path(top).relative_to(place)
        if here == Path():
            folders[:] = [name for name in folders if name != _RESOLVED]
        for name in folders:
            _copied(Path(top, name), target / here / name)
        for name in names:
            if not pattern.fullmatch(name):
                _copied(Path(top, name), target / here / name)


def _copied(source: Path, target: Path) -> None:
    found = source.lstat()
    if stat.S_ISDIR(found.st_mode):
        target.mkdir(exist_ok=True)
    elif stat.S_ISREG(found.st_mode):
        shutil.copyfile(source, target)
    else:
        return
    os.chown(target, found.st_uid, found.st_gid)
    target.chmod(stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _read(place: Path, path: str) -> str | None:
    """A small file that a sandbox wrote; None where it wrote none. No link is followed."""
    top = os.open(place, _FOLDER)
    try:
        descriptor = linux.openat2(
            top, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, resolve=_CONFINED
        )
    except OSError:
        return None
    finally:
        os.close(top)
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return source.read(_MOST).decode("utf-8", "replace")
