"""An untrusted archive becomes a clean tar stream; the engine unpacks that inside the sandbox."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from pytest_sandbox.archives.rules import (
    BOUNDS,
    Bounds,
    Kind,
    Refused,
    Tree,
    check_drive,
    check_symlink,
    shown,
    split_name,
)
from pytest_sandbox.archives.streams import Forward, Meter, TarWriter, decompressed, members
from pytest_sandbox.errors import Blame, StepFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FORMATS: Final = {
    "tar.gz": "tar.gz",
    "tgz": "tar.gz",
    "tar.xz": "tar.xz",
    "txz": "tar.xz",
    "tar.bz2": "tar.bz2",
    "tbz2": "tar.bz2",
    "tbz": "tar.bz2",
    "tar.zst": "tar.zst",
    "tzst": "tar.zst",
    "tar.lz": "tar.lz",
    "tar": "tar",
    "zip": "zip",
}
"""What a recipe may write as `format`, and what it means; `auto` goes by the name, then by the
content.
"""

_MAGIC: Final = (
    (0, b"\x1f\x8b", "tar.gz"),
    (0, b"\xfd7zXZ\0", "tar.xz"),
    (0, b"BZh", "tar.bz2"),
    (0, b"\x28\xb5\x2f\xfd", "tar.zst"),
    (0, b"LZIP", "tar.lz"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (257, b"ustar", "tar"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a tar stream holds: its members, and the bytes of their contents."""

    entries: int
    bytes: int


def sniff(source: Path) -> str:
    """The archive's format by its first bytes, or "" (an old tar without magic has none)."""
    with source.open("rb") as file:
        head = file.read(512)
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset):
            return name
    return ""


def transcode(
    source: Path,
    format: str,
    out: IO[bytes],
    *,
    strip: int = 0,
    files: Sequence[str] = (),
    uid: int = 0,
    gid: int = 0,
    bounds: Bounds = BOUNDS,
    name: str = "",
) -> Report:
    """Read the archive at `source`, check every member, and write what is kept to `out` as PAX tar.

    `strip` drops that many leading components (members with no more are skipped); `files` keeps
    only these stripped paths, and what lies below one that is a folder. Owners become `uid` and
    `gid`, modes lose setuid, setgid and sticky bits, times stay. `name` is the archive's own name,
    for `auto` and for errors (a cached file's name is its hash).

    Folders that no member names are not written: whoever unpacks makes them. On an error the stream
    has no end mark, so that no reader takes it for whole. Raises StepFailed: `upstream` for an
    archive that breaks a rule or a bound, `recipe` for a wrong format, filter or strip,
    `unsupported` for tar.lz.
    """
    name = name or source.name
    kind = _format(format, source, name)
    cleaner = _Cleaner(TarWriter(out), strip=strip, files=files, owner=(uid, gid), bounds=bounds)
    try:
        with source.open("rb") as file:
            meter = Meter(bounds, source.stat().st_size)
            if kind == "zip":
                from pytest_sandbox.archives.zips import read_zip

                read_zip(file, cleaner, meter, bounds)
            else:
                _read_tar(Forward(decompressed(file, kind, bounds), meter.add), cleaner, bounds)
    except Refused as error:
        found = sniff(source)
        if found and found != kind:
            what = f"archive {name} is no {kind}: it looks like {found}"
            raise StepFailed(what, next_step=f'write format = "{found}"') from error
        what = f"archive {name}: {error}"
        raise StepFailed(
            what,
            blame=Blame.UPSTREAM,
            next_step="do not unpack it by hand; report it to those who publish it",
        ) from error
    cleaner.finish(name)
    return Report(cleaner.entries, cleaner.bytes)


def _format(format: str, source: Path, name: str) -> str:
    kind = FORMATS.get(format.lower().lstrip("."), "")
    if format == "auto":
        lower = name.lower()
        suffixes = (suffix for suffix in FORMATS if lower.endswith("." + suffix))
        kind = FORMATS.get(next(suffixes, ""), "") or sniff(source)
    if kind == "tar.lz":
        what = f"archive {name}: lzip (tar.lz) is not supported"
        raise StepFailed(
            what, blame=Blame.UNSUPPORTED, next_step="use another of the project's archives"
        )
    if not kind:
        what = (
            f"archive {name}: neither its name nor its content is that of a known archive"
            if format == "auto"
            else f"archive {name}: {format!r} is no known archive format"
        )
        raise StepFailed(what, next_step=f"write one of {', '.join(sorted(FORMATS))} as format")
    return kind


def _read_tar(stream: Forward, cleaner: _Cleaner, bounds: Bounds) -> None:
    for info in members(stream, bounds):
        parts = cleaner.select(info.name, folder=info.isdir())
        if parts is None:
            continue
        if info.issparse() or any(key.startswith("GNU.sparse.") for key in info.pax_headers):
            msg = f"member {shown(info.name)} is a sparse file"
            raise Refused(msg)
        if info.isdir():
            cleaner.folder(parts, info.mode, info.mtime)
        elif info.issym():
            cleaner.symlink(parts, info.linkname, info.mtime)
        elif info.islnk():
            cleaner.hard_link(parts, info.linkname, info.mode, info.mtime)
        elif info.isreg():
            stream.seek(info.offset_data)
            cleaner.file(parts, info.size, info.mode, info.mtime, stream.read)
        else:
            what = "a device or a FIFO" if info.isdev() else f"of an unknown type ({info.type!r})"
            msg = f"member {shown(info.name)} is {what}"
            raise Refused(msg)
    stream.drain()


class _Cleaner:
    """The rules of `transcode`, whatever the archive's format; writes what passes them."""

    def __init__(
        self,
        writer: TarWriter,
        *,
        strip: int,
        files: Sequence[str],
        owner: tuple[int, int],
        bounds: Bounds,
    ) -> None:
        self.entries = 0
        self.bytes = 0
        self._writer = writer
        self._strip = strip
        self._uid, self._gid = owner
        self._bounds = bounds
        self._tree = Tree(bounds)
        self._seen = 0
        self._missing: dict[tuple[str, ...], str] = {}
        for wanted in files:
            try:
                self._missing[split_name(wanted, bounds)] = wanted
            except Refused as error:
                what = f"files = [{wanted!r}] cannot select anything: {error}"
                raise StepFailed(what, next_step="write the path inside the archive") from error
        self._wanted = frozenset(self._missing)

    def select(self, name: str, *, folder: bool) -> tuple[str, ...] | None:
        """A member's stripped components, or None where it is not wanted."""
        self._seen += 1
        parts = split_name(name, self._bounds)
        check_drive(name)
        if not parts and not folder:
            msg = f"member {shown(name)} takes the place of the folder it is unpacked into"
            raise Refused(msg)
        parts = parts[self._strip :]
        if not parts:
            return None
        if self._wanted:
            above = next(
                (parts[:n] for n in range(len(parts) + 1) if parts[:n] in self._wanted), None
            )
            if above is None:
                return None
            self._missing.pop(above, None)
        return parts

    def folder(self, parts: tuple[str, ...], mode: int, mtime: float) -> None:
        self._tree.place(parts, Kind.FOLDER)
        self._writer.header(self._info(parts, tarfile.DIRTYPE, mode, mtime))

    def symlink(self, parts: tuple[str, ...], target: str, mtime: float) -> None:
        check_symlink(parts, target, self._bounds)
        self._tree.place(parts, Kind.SYMLINK)
        info = self._info(parts, tarfile.SYMTYPE, 0o777, mtime)
        info.linkname = target
        self._writer.header(info)

    def hard_link(self, parts: tuple[str, ...], target: str, mode: int, mtime: float) -> None:
        other = split_name(target, self._bounds)[self._strip :]
        if self._tree.kind(other) is not Kind.FILE or other == parts:
            msg = (
                f"hard link {shown('/'.join(parts))} points to {shown(target)},"
                " which is no regular file that comes before it"
            )
            raise Refused(msg)
        self._tree.place(parts, Kind.FILE)
        info = self._info(parts, tarfile.LNKTYPE, mode, mtime)
        info.linkname = "/".join(other)
        self._writer.header(info)

    def file(
        self,
        parts: tuple[str, ...],
        size: int,
        mode: int,
        mtime: float,
        read: Callable[[int], bytes],
    ) -> None:
        self._tree.place(parts, Kind.FILE)
        info = self._info(parts, tarfile.REGTYPE, mode, mtime)
        info.size = size
        try:
            self._writer.file(info, read)
        except EOFError as error:
            msg = f"it is cut short: {error}"
            raise Refused(msg) from error
        self.bytes += size

    def finish(self, name: str) -> None:
        """End the stream, unless something that the recipe asked for is not in it."""
        if self._missing:
            names = ", ".join(repr(wanted) for wanted in self._missing.values())
            what = f"archive {name} does not hold {names} (after {self._strip} stripped folders)"
            raise StepFailed(what, next_step="correct files or strip_dirs")
        if not self.entries:
            left = f"none of {self._seen} members is left after strip_dirs = {self._strip}"
            what = f"archive {name}: {left}"
            raise StepFailed(what, next_step="lower strip_dirs, or check the archive")
        self._writer.close()

    def _info(
        self, parts: tuple[str, ...], type: bytes, mode: int, mtime: float
    ) -> tarfile.TarInfo:
        self.entries += 1
        info = tarfile.TarInfo("/".join(parts))
        info.type = type
        info.mode = mode & 0o777
        info.mtime = mtime
        info.uid, info.gid = self._uid, self._gid
        return info
