"""`cp -a` between host and sandbox, as tar streams."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import tempfile
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from pytest_sandbox.archives.clean import Report
from pytest_sandbox.archives.rules import BOUNDS, Bounds, Kind, Refused, Tree, shown, split_name
from pytest_sandbox.archives.streams import Forward, TarWriter, clamp_time, members
from pytest_sandbox.errors import StepFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOP: Final = "copy"
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(source: Path, name: str, out: IO[bytes]) -> Report:
    """Write the file, symlink or folder `source` to `out` as a tar stream whose members begin with
    `name`.

    Modes, times, symlinks and hard links are kept, the owner becomes root; extended attributes are
    not copied. Raises FileNotFoundError, and UsageError for a socket, FIFO or device and for a file
    that shrinks meanwhile.
    """
    writer = TarWriter(out)
    first: dict[tuple[int, int], str] = {}
    stack = [(Path(source), name)]
    entries = size = 0
    while stack:
        path, member = stack.pop()
        status = path.lstat()
        info = tarfile.TarInfo(member)
        info.mode = stat.S_IMODE(status.st_mode)
        _set_time(info, status.st_mtime_ns)
        entries += 1
        if stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
            writer.header(info)
            stack += [(path / below, f"{member}/{below}") for below in _reversed_names(path)]
        elif stat.S_ISLNK(status.st_mode):
            info.type = tarfile.SYMTYPE
            info.linkname = str(path.readlink())
            writer.header(info)
        elif stat.S_ISREG(status.st_mode):
            key = (status.st_dev, status.st_ino)
            info.linkname = first.setdefault(key, member) if status.st_nlink > 1 else ""
            if info.linkname not in ("", member):
                info.type = tarfile.LNKTYPE
                writer.header(info)
            else:
                info.linkname = ""
                size += _pack_file(writer, info, path)
        else:
            what = f"{path} is a socket, a FIFO or a device, which cannot be copied into a sandbox"
            raise UsageError(what, next_step="copy what it lies beside, or remove it")
    writer.close()
    return Report(entries, size)


def _reversed_names(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted((entry.name for entry in entries), reverse=True)


def _pack_file(writer: TarWriter, info: tarfile.TarInfo, path: Path) -> int:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        try:
            writer.file(info, file.read)
        except EOFError as error:
            what = f"{path} became shorter while it was copied"
            raise UsageError(what, next_step="copy it when nothing writes to it") from error
    return info.size


def _set_time(info: tarfile.TarInfo, nanoseconds: int) -> None:
    """A whole number of seconds needs no PAX header; a fraction is written exactly (a float is
    not).
    """
    seconds, rest = divmod(nanoseconds, 10**9)
    info.mtime = seconds
    if rest and clamp_time(seconds):
        info.pax_headers = {"mtime": f"{seconds}.{rest:09d}"}


def _get_time(info: tarfile.TarInfo) -> int:
    try:
        value = Decimal(info.pax_headers.get("mtime", "") or str(info.mtime))
    except InvalidOperation:
        return 0
    return int(value * 10**9) if value.is_finite() and clamp_time(float(value)) else 0


def unpack_to_host(
    stream: IO[bytes], destination: Path, member_root: str, *, bounds: Bounds = BOUNDS
) -> Path:
    """Write the members of `stream` (all below `member_root`) to the host like `cp -a`; the path
    that they now have.

    Where `destination` is a folder, the copy goes into it under the last component of
    `member_root`, and into a folder of that name if there is one; else `destination` is the copy's
    own path. Nothing shows there before everything has been read. Symlinks are kept as they are,
    absolute ones too, and never followed. Modes are kept without setuid and setgid; the owner is
    who runs this; extended attributes are not copied.

    Raises StepFailed for devices, FIFOs, sparse files, names that climb, members below a symlink
    and streams beyond `bounds` (all but the ratio apply), FileNotFoundError where the folder above
    `destination` is missing, and FileExistsError where a file and a folder would change places.
    """
    root = split_name(member_root.strip("/") or ".")
    final = destination / (root[-1] if root else "") if destination.is_dir() else destination
    if not final.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(final.parent))
    room = Path(tempfile.mkdtemp(prefix=".pytest-sandbox-", dir=final.parent))
    try:
        unpacker = _Unpacker(room, root, bounds)
        try:
            unpacker.read(stream)
        except Refused as error:
            what = f"{member_root} cannot be copied out of the sandbox: {error}"
            raise StepFailed(what, next_step="copy a part of it") from error
        if not os.path.lexists(room / _TOP):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), member_root)
        _publish(room / _TOP, final)
        unpacker.finish(final)
    finally:
        shutil.rmtree(room)
    return final


def _publish(made: Path, final: Path) -> None:
    """Move what was made to its place; a folder that is there takes the new one's contents."""
    is_folder = made.is_dir() and not made.is_symlink()
    if final.is_dir() and (is_folder or not final.is_symlink()):
        if not is_folder or final.is_symlink():
            raise FileExistsError(errno.EISDIR, "a folder is in the file's place", str(final))
        for below in sorted(made.iterdir()):
            _publish(below, final / below.name)
        return
    if is_folder and os.path.lexists(final):
        raise FileExistsError(errno.ENOTDIR, "a file is in the folder's place", str(final))
    made.replace(final)


class _Unpacker:
    """Writes members below a fresh folder that nobody else can enter; every folder on the way is
    opened by itself.
    """

    def __init__(self, room: Path, root: tuple[str, ...], bounds: Bounds) -> None:
        self._room = room
        self._root = root
        self._bounds = bounds
        self._tree = Tree(bounds)
        self._folders: dict[tuple[str, ...], tuple[int, int | None]] = {}
        self._bytes = 0

    def read(self, stream: IO[bytes]) -> None:
        forward = Forward(stream, self._count)
        for info in members(forward, self._bounds):
            parts = split_name(info.name, self._bounds)
            if parts[: len(self._root)] != self._root:
                msg = f"member {shown(info.name)} does not belong to it"
                raise Refused(msg)
            self._write(forward, info, (_TOP, *parts[len(self._root) :]))
        forward.drain()

    def finish(self, final: Path) -> None:
        """Modes and times of folders, the deepest first: a folder may forbid what is written into
        it.
        """
        for parts, (mode, time) in sorted(self._folders.items(), reverse=True):
            path = final.joinpath(*parts[1:])
            if time is not None:
                os.utime(path, ns=(time, time))
            path.chmod(mode)

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._bounds.total:
            msg = f"it holds more than {self._bounds.total} bytes"
            raise Refused(msg)

    def _write(self, stream: Forward, info: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        if info.issparse() or any(key.startswith("GNU.sparse.") for key in info.pax_headers):
            msg = f"member {shown(info.name)} is a sparse file"
            raise Refused(msg)
        time = _get_time(info)
        if info.isdir():
            self._tree.place(parts, Kind.FOLDER)
            with self._folder(parts):
                self._folders[parts] = (info.mode & 0o1777, time)
            return
        if not (info.issym() or info.islnk() or info.isreg()):
            msg = f"member {shown(info.name)} is a device, a FIFO or of an unknown type"
            raise Refused(msg)
        if info.issym() and (not info.linkname or "\0" in info.linkname):
            msg = f"symlink {shown(info.name)} has the impossible target {shown(info.linkname)}"
            raise Refused(msg)
        other = self._link_target(info) if info.islnk() else ()
        if not self._tree.place(parts, Kind.SYMLINK if info.issym() else Kind.FILE):
            msg = f"member {shown(info.name)} comes twice"
            raise Refused(msg)
        with self._folder(parts[:-1]) as folder:
            if info.issym():
                os.symlink(info.linkname, parts[-1], dir_fd=folder)
                os.utime(parts[-1], ns=(time, time), dir_fd=folder, follow_symlinks=False)
            elif info.islnk():
                with self._folder(other[:-1]) as source:
                    os.link(
                        other[-1],
                        parts[-1],
                        src_dir_fd=source,
                        dst_dir_fd=folder,
                        follow_symlinks=False,
                    )
            else:
                self._write_file(stream, info, parts[-1], folder)

    def _write_file(self, stream: Forward, info: tarfile.TarInfo, name: str, folder: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
            stream.seek(info.offset_data)
            left = info.size
            while left:
                block = stream.read(min(1 << 18, left))
                if not block:
                    msg = f"the stream ends within {shown(info.name)}"
                    raise Refused(msg)
                file.write(block)
                left -= len(block)
            file.flush()
            time = _get_time(info)
            os.utime(file.fileno(), ns=(time, time))
            os.fchmod(file.fileno(), info.mode & 0o1777)

    def _link_target(self, info: tarfile.TarInfo) -> tuple[str, ...]:
        target = split_name(info.linkname, self._bounds)
        other = (_TOP, *target[len(self._root) :])
        if target[: len(self._root)] != self._root or self._tree.kind(other) is not Kind.FILE:
            msg = (
                f"hard link {shown(info.name)} points to {shown(info.linkname)},"
                " which is no regular file that comes before it"
            )
            raise Refused(msg)
        return other

    @contextmanager
    def _folder(self, parts: tuple[str, ...]) -> Iterator[int]:
        """A descriptor of a folder in the room; made on the way, no component may be a symlink."""
        descriptor = os.open(self._room, _OPEN_FOLDER)
        try:
            for depth, part in enumerate(parts, 1):
                if parts[:depth] not in self._folders:
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                    self._folders[parts[:depth]] = (0o755, None)
                below = os.open(part, _OPEN_FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)
