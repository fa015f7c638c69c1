"""The members of a zip archive; the central directory, the local headers and the data must tell one
story.
"""

from __future__ import annotations

import calendar
import stat
import struct
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Final

from pytest_sandbox.archives.rules import Refused, shown

if TYPE_CHECKING:
    from pytest_sandbox.archives.clean import _Cleaner
    from pytest_sandbox.archives.rules import Bounds
    from pytest_sandbox.archives.streams import Meter

_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_CENTRAL: Final = 46
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_DESCRIPTOR: Final = 0x8
_UTF8: Final = 0x800
_UNIX: Final = (3, 19)
_IN_EXTRA: Final = 0xFFFFFFFF


def read_zip(file: IO[bytes], cleaner: _Cleaner, meter: Meter, bounds: Bounds) -> None:
    """Hand every member of the zip in `file` to the cleaner. Raises Refused."""
    _count_entries(file, bounds)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        msg = f"it is no zip that can be read: {error}"
        raise Refused(msg) from error
    with archive:
        infos = archive.infolist()
        _check_layout(file, infos, archive.start_dir)
        for info in infos:
            _read_member(archive, info, cleaner, meter, bounds)


def _read_member(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    cleaner: _Cleaner,
    meter: Meter,
    bounds: Bounds,
) -> None:
    name = _raw_name(info).decode("utf-8", "surrogateescape")
    mode = info.external_attr >> 16 if info.create_system in _UNIX else 0
    kind = stat.S_IFMT(mode)
    folder = name.endswith("/") or kind == stat.S_IFDIR
    parts = cleaner.select(name, folder=folder)
    if parts is None:
        return
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        msg = f"member {shown(name)} is a device, a FIFO or a socket"
        raise Refused(msg)
    mtime = _time(info)
    if folder:
        if info.file_size or kind in (stat.S_IFREG, stat.S_IFLNK):
            msg = f"member {shown(name)} is called a folder and is a file"
            raise Refused(msg)
        cleaner.folder(parts, mode & 0o777 or 0o755, mtime)
        return
    with archive.open(info) as body:

        def read(size: int) -> bytes:
            try:
                block = body.read(size)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                msg = f"member {shown(name)} is damaged: {error}"
                raise Refused(msg) from error
            meter.add(len(block))
            return block

        if kind == stat.S_IFLNK:
            if info.file_size > bounds.path:
                msg = f"symlink {shown(name)} has a target of {info.file_size} bytes"
                raise Refused(msg)
            cleaner.symlink(parts, read(bounds.path).decode("utf-8", "surrogateescape"), mtime)
        else:
            cleaner.file(parts, info.file_size, mode & 0o777 or 0o644, mtime, read)


def _count_entries(file: IO[bytes], bounds: Bounds) -> None:
    """Walk the central directory before zipfile loads it: it believes any number of entries."""
    start, size = _central_directory(file)
    file.seek(start)
    left, entries = size, 0
    while left > 0:
        head = file.read(_CENTRAL)
        if len(head) < _CENTRAL or not head.startswith(b"PK\x01\x02"):
            msg = "its central directory is damaged"
            raise Refused(msg)
        rest = sum(struct.unpack_from("<3H", head, 28))
        file.seek(rest, 1)
        left -= _CENTRAL + rest
        entries += 1
        if entries > bounds.entries:
            msg = f"it holds more than {bounds.entries} members"
            raise Refused(msg)


def _central_directory(file: IO[bytes]) -> tuple[int, int]:
    """Where the central directory begins, and its size; found in the way that zipfile finds it."""
    length = file.seek(0, 2)
    tail_start = max(0, length - _END.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        msg = "it has no central directory (cut short, or no zip)"
        raise Refused(msg)
    end = _END.unpack_from(tail, at)
    if at + _END.size + end[7] != len(tail):
        msg = "something follows the end of the zip"
        raise Refused(msg)
    position, size, offset = tail_start + at, int(end[5]), int(end[6])
    file.seek(max(0, position - _LOCATOR64.size))
    locator = file.read(_LOCATOR64.size)
    if position >= _LOCATOR64.size + _END64.size and locator.startswith(b"PK\x06\x07"):
        place = position - _LOCATOR64.size - _END64.size
        file.seek(place)
        record = _END64.unpack(file.read(_END64.size))
        if record[0] != b"PK\x06\x06" or _LOCATOR64.unpack(locator)[2] != place:
            msg = "its zip64 records contradict each other"
            raise Refused(msg)
        position, size, offset = place, record[8], record[9]
    start = position - size
    if start < 0 or offset > start:
        msg = "its central directory lies outside the file"
        raise Refused(msg)
    return start, size


def _check_layout(file: IO[bytes], infos: list[zipfile.ZipInfo], end: int) -> None:
    """Every member has its own bytes, and its local header says what the central directory says."""
    limit = end
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        name = shown(info.orig_filename)
        if info.flag_bits & _ENCRYPTED:
            msg = f"member {name} is encrypted"
            raise Refused(msg)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            msg = f"member {name} uses compression method {info.compress_type}, not 0 or 8"
            raise Refused(msg)
        if not 0 <= info.header_offset <= limit - _LOCAL.size:
            msg = f"member {name} overlaps another one or lies outside the file"
            raise Refused(msg)
        file.seek(info.header_offset)
        head = _LOCAL.unpack(file.read(_LOCAL.size))
        local_name = file.read(head[9])
        local, central = (head[2] & ~_UTF8, head[3]), (info.flag_bits & ~_UTF8, info.compress_type)
        sizes = (info.CRC, info.compress_size, info.file_size)
        same_sizes = all(
            theirs in (ours, _IN_EXTRA) or (theirs == 0 and head[2] & _DESCRIPTOR)
            for ours, theirs in zip(sizes, head[6:9], strict=True)
        )
        if (
            head[0] != b"PK\x03\x04"
            or local != central
            or local_name != _raw_name(info)
            or not same_sizes
        ):
            msg = f"member {name}: its local header contradicts the central directory"
            raise Refused(msg)
        if info.header_offset + _LOCAL.size + head[9] + head[10] + info.compress_size > limit:
            msg = f"member {name} overlaps another one"
            raise Refused(msg)
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            msg = f"member {name} is stored with two different sizes"
            raise Refused(msg)
        limit = info.header_offset


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """The name's bytes; tools that write UTF-8 often do not set the flag that says so."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")


def _time(info: zipfile.ZipInfo) -> float:
    """The extended timestamp (UTC) if there is one, else the DOS time, zoneless, as UTC."""
    extra = info.extra
    while len(extra) >= 4:
        key, size = struct.unpack_from("<2H", extra)
        if key == 0x5455 and size >= 5 and len(extra) >= 9 and extra[4] & 1:
            return float(struct.unpack_from("<l", extra, 5)[0])
        extra = extra[4 + size :]
    try:
        return float(calendar.timegm((*info.date_time, 0, 0, 0)))
    except ValueError:
        return 0.0
