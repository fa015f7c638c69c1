"""A folder of the host as the stream of an archive, in the form of image layers (pax).

It crosses into the sandbox's ids as a stream, so the jobs there need no right to read it. Names,
modes, times, links, hard links and extended attributes are kept; sockets are left out.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.oci.ids import IdSpace, Range

_BLOCK: Final = 1 << 20
_XATTRS: Final = ("user.", "security.capability")
_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")


@contextlib.contextmanager
def feed_folder(folder: Path, ids: IdSpace, *, prefix: str = "") -> Iterator[int]:
    """A descriptor from which the archive of `folder` can be read. With a `prefix` the folder
    becomes that one; without, its content goes to the root and it is the root itself.

    Root's files keep their ids. Those of an ordinary user are told as the sandbox will see them:
    its own id as 0, its subordinate ids from 1. Raises UsageError for what is no folder and for
    ids that have no place in the sandbox; what goes wrong on the way is raised at the end.
    """
    if not folder.is_dir():
        msg = f"{folder} is no folder"
        raise UsageError(msg, next_step="name the folder of a root file system")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with open(writer, "wb") as out:  # noqa: PTH123 - a descriptor
                write_folder(folder, out.fileno(), ids, prefix=prefix)
        except BrokenPipeError:
            pass  # the reader has refused it, and says why
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write, name="sandbox-folder", daemon=True)
    thread.start()
    try:
        yield reader
    except BaseException as wrong:
        os.close(reader)
        thread.join()
        if failed:  # a stream that was cut short is the smaller truth
            raise failed[0] from wrong
        raise
    os.close(reader)
    thread.join()
    if failed:
        raise failed[0]


def write_folder(folder: Path, out: int, ids: IdSpace, *, prefix: str = "") -> None:
    """Write the archive to the descriptor `out`. Raises UsageError and OSError."""
    top = prefix.strip("/")
    seen: dict[tuple[int, int], str] = {}
    with (
        os.fdopen(os.dup(out), "wb", buffering=_BLOCK) as file,
        tarfile.open(
            fileobj=file, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8"
        ) as archive,
    ):
        for place, path in _walk(os.fspath(folder), top):
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode):
                continue
            member = _member(place, path, status, ids, seen)
            if member.isreg():
                with open(path, "rb") as data:  # noqa: PTH123 - bytes are possible
                    archive.addfile(member, data)
            else:
                archive.addfile(member)


def _walk(folder: str, top: str) -> Iterator[tuple[str, str]]:
    """(name in the archive, path) of the folder and of all below it, parents first."""
    todo = [(top, folder)]
    while todo:
        place, path = todo.pop()
        yield place or ".", path
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        below = []
        for entry in found:
            inside = f"{place}/{entry.name}" if place else entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append((inside, entry.path))
            else:
                yield inside, entry.path
        todo += reversed(below)


def _member(
    place: str,
    path: str,
    status: os.stat_result,
    ids: IdSpace,
    seen: dict[tuple[int, int], str],
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(place)
    member.mode = stat.S_IMODE(status.st_mode)
    member.mtime = 0
    member.uid = _inside(status.st_uid, ids.uids, ids.rootless, path)
    member.gid = _inside(status.st_gid, ids.gids, ids.rootless, path)
    seconds, rest = divmod(abs(status.st_mtime_ns), 10**9)
    sign = "-" if status.st_mtime_ns < 0 else ""
    member.pax_headers = {"mtime": f"{sign}{seconds}.{rest:09}"}
    kind = stat.S_IFMT(status.st_mode)
    key = (status.st_dev, status.st_ino)
    if kind != stat.S_IFDIR and status.st_nlink > 1:
        if key in seen:
            member.type, member.linkname = tarfile.LNKTYPE, seen[key]
            return member
        seen[key] = place
    if kind == stat.S_IFREG:
        member.size = status.st_size
    elif kind == stat.S_IFDIR:
        member.type = tarfile.DIRTYPE
    elif kind == stat.S_IFLNK:
        member.type, member.linkname = tarfile.SYMTYPE, os.fspath(Path(path).readlink())
    elif kind == stat.S_IFIFO:
        member.type = tarfile.FIFOTYPE
    else:
        member.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if kind != stat.S_IFLNK:
        member.pax_headers |= _xattrs(path)
    return member


def _xattrs(path: str) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):  # a file system without them
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith(_XATTRS) or name in _ACLS:
                value = os.getxattr(path, name, follow_symlinks=False)
                found[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    return found


def _inside(number: int, ranges: Iterable[Range], rootless: bool, path: str) -> int:
    if not rootless:
        return number
    for found in ranges:
        if found.outside <= number < found.outside + found.size:
            return found.inside + number - found.outside
    msg = f"{path} belongs to the id {number}, which is not yours to give to a sandbox"
    raise UsageError(msg, next_step="copy the folder as yourself, or run this as root")
