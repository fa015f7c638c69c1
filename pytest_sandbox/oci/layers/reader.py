"""Reads an archive as it streams by: POSIX pax and ustar, GNU tar, v7.

What two readers could take in two ways is refused, never guessed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.layers import members, sparse
from pytest_sandbox.oci.layers.members import RECORD, SECOND, BadHeader, Member

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds
    from pytest_sandbox.oci.layers.decompress import Unpacked

_ZERO: Final = bytes(RECORD)
_POSIX: Final = b"ustar\x00"
_GNU: Final = b"ustar  \x00"
_DATALESS: Final = frozenset(b"123456")
_FILES: Final = frozenset(b"0\x007S")
_TIMES: Final = SECOND << 53
_XATTR: Final = b"SCHILY.xattr."
_HARMLESS: Final = (b"comment", b"charset", b"hdrcharset")
_EMPTY: Final[dict[str, bytes]] = {}


class Extension:
    """What the extended headers in front of a member say."""

    __slots__ = ("link", "name", "pax", "seen", "sparse", "xattrs")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.link: bytes | None = None
        self.pax: dict[bytes, bytes] = {}
        self.xattrs: dict[str, bytes] = _EMPTY
        self.sparse: list[bytes] = []
        self.seen: set[int] = set()


class Reader:
    """The members of an archive, one after the other.

    Raises InvalidImage, with `name` and the member in front, for everything that is not plain.
    """

    def __init__(self, source: Unpacked, bounds: Bounds, *, name: str = "layer") -> None:
        self.name = name
        self.count = 0
        self._source = source
        self._bounds = bounds
        self._view = memoryview(b"")
        self._at = 0
        self._end = 0
        self._left = 0  # of the member's data
        self._padding = 0
        self._member: Member | None = None

    def refuse(self, what: str, member: bytes | None = None) -> InvalidImage:
        """The error for a rule that a member (the present one) breaks."""
        if member is None and self._member is not None:
            member = self._member.name
        where = f"{os.fsdecode(member)!r}: " if member is not None else ""
        return InvalidImage(f"{self.name}: {where}{what}")

    def _fail(self, what: str) -> NoReturn:
        raise self.refuse(what)

    def next(self) -> Member | None:
        """The next member; None behind the last one, when the whole stream has been read."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        extension: Extension | None = None
        while True:
            header = self._take(RECORD, "a header")
            if not header or header == _ZERO:
                if extension is not None and extension.seen != {ord("g")}:
                    self._fail("the archive ends behind an extended header")
                self._finish(header)
                return None
            fields: tuple[bytes, ...] = members.HEADER.unpack(header)
            try:
                if not members.checksum_holds(header, fields[6]):
                    where = "header behind it" if self._member else "first header"
                    self._fail(f"the {where} has a wrong checksum: no archive, or cut")
                kind = fields[7][0]
                if kind in b"xgLK":
                    extension = extension or Extension()
                    self._extend(extension, kind, members.number(fields[4], "size"))
                    continue
                self._member = None
                member = self._make(header, fields, extension)
            except BadHeader as error:
                name = fields[0].partition(b"\0")[0]
                if extension is not None:
                    name = extension.name or extension.pax.get(b"path") or name
                raise self.refuse(str(error), name) from None
            self._member = member
            self.count += 1
            return member

    def write_to(self, descriptor: int) -> None:
        """Write the member's whole content to a new, empty file."""
        member = self._member
        if member is None or not self._left:
            if member is not None and member.segments is not None:
                os.ftruncate(descriptor, member.size)
            return
        if member.segments is None:
            self._copy(descriptor, self._left)
            return
        os.ftruncate(descriptor, member.size)
        for offset, length in member.segments:
            os.lseek(descriptor, offset, os.SEEK_SET)
            self._copy(descriptor, length)

    def _copy(self, descriptor: int, size: int) -> None:
        self._left -= size
        while size:
            if self._at == self._end and not self._fill():
                self._fail("the archive ends inside of it")
            start = self._at
            stop = min(start + size, self._end)
            written = os.write(descriptor, self._view[start:stop])
            self._at += written
            size -= written

    def _fill(self) -> bool:
        block = self._source.take()
        self._view = memoryview(block)
        self._at, self._end = 0, len(block)
        return bool(block)

    def _skip(self, size: int) -> None:
        while size:
            if self._at == self._end and not self._fill():
                self._fail("the archive ends inside of it")
            step = min(size, self._end - self._at)
            self._at += step
            size -= step

    def _take(self, size: int, what: str) -> bytes:
        """So many bytes; none at the end of the stream."""
        at = self._at
        if self._end - at >= size:
            self._at = at + size
            return self._view[at : at + size].tobytes()
        parts: list[memoryview] = []
        missing = size
        while missing:
            if self._at == self._end and not self._fill():
                if missing == size:
                    return b""
                self._fail(f"the archive ends inside of {what}")
            step = min(missing, self._end - self._at)
            parts.append(self._view[self._at : self._at + step])
            self._at += step
            missing -= step
        return b"".join(parts)

    def _finish(self, header: bytes) -> None:
        """Behind the archive's end: read on, for the digest."""
        self._member = None
        if header:
            second = self._take(RECORD, "its end")
            if second and second != _ZERO:
                self._fail("there is an empty record in the middle of the archive")
        while self._fill():
            pass

    def _extend(self, extension: Extension, kind: int, size: int) -> None:
        """Read one extended header. Each kind may stand once in front of a member."""
        letter = chr(kind)
        if kind in extension.seen and letter != "g":
            msg = f"two extended headers of type {letter!r} in front of one member"
            raise BadHeader(msg)
        extension.seen.add(kind)
        if not 0 <= size <= self._bounds.record:
            msg = f"an extended header of {size} bytes is over the bound of {self._bounds.record}"
            raise BadHeader(msg)
        data = self._take(size, "an extended header")
        if len(data) < size:
            msg = "the archive ends inside of an extended header"
            raise BadHeader(msg)
        self._skip(-size % RECORD)
        if letter == "x":
            self._read_pax(extension, data)
        elif letter == "g":
            for keyword, _ in members.pax_records(data):
                if keyword not in _HARMLESS:
                    msg = f"a global header sets {keyword!r}: not supported"
                    raise BadHeader(msg)
        else:
            text = data.rstrip(b"\0")
            if letter == "L":
                extension.name = text
            else:
                extension.link = text

    def _read_pax(self, extension: Extension, data: bytes) -> None:
        for keyword, value in members.pax_records(data):
            if keyword.startswith(_XATTR):
                if extension.xattrs is _EMPTY:
                    extension.xattrs = {}
                name = keyword[len(_XATTR) :]
                if not name or b"\0" in name:
                    msg = f"an extended attribute has the name {name!r}"
                    raise BadHeader(msg)
                extension.xattrs[os.fsdecode(name)] = value
            elif keyword in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
                extension.sparse.append(value)
            elif value:
                extension.pax[keyword] = value
            else:
                extension.pax.pop(keyword, None)

    def _make(
        self, header: bytes, fields: tuple[bytes, ...], extension: Extension | None
    ) -> Member:
        number = members.number
        kind = fields[7]
        name = fields[0].partition(b"\0")[0]
        magic = fields[9]
        atime: int | None = None
        if magic == _GNU:
            if header[345:357].strip(b"\0 "):
                atime, name = _gnu_time_or_prefix(header, name)
        elif magic.startswith(_POSIX):
            prefix = header[345:476] if header[508:512] == b"tar\0" else header[345:500]
            if prefix[0]:
                name = prefix.partition(b"\0")[0] + b"/" + name
        member = Member(
            name,
            kind,
            link=fields[8].partition(b"\0")[0],
            mode=number(fields[1], "mode") & 0o7777,
            uid=number(fields[2], "uid"),
            gid=number(fields[3], "gid"),
            size=number(fields[4], "size"),
            mtime=number(fields[5], "time") * SECOND,
            atime=atime,
        )
        if atime is None:
            member.atime = member.mtime
        if extension is not None:
            self._overrule(member, extension)
        self._settle(member, header, extension)
        return member

    def _settle(self, member: Member, header: bytes, extension: Extension | None) -> None:
        """What the type makes of the size; and what no file can have."""
        member.stored = member.size
        kind = member.kind
        letter = kind[0]
        if letter in _FILES:
            if letter == 0 and member.name.endswith(b"/"):
                member.kind = members.FOLDER
                member.size = member.stored = 0
            else:
                self._make_file(member, header, extension)
        elif letter in _DATALESS:
            member.size = member.stored = 0
        else:
            msg = f"its type {kind!r} is unknown"
            raise BadHeader(msg)
        if member.stored < 0 or member.size < 0:
            msg = f"its size is {member.size}"
            raise BadHeader(msg)
        if abs(member.mtime) >= _TIMES or abs(member.atime) >= _TIMES:
            msg = "its time is out of range"
            raise BadHeader(msg)

    def _overrule(self, member: Member, extension: Extension) -> None:
        """Let the extended headers speak."""
        member.xattrs = extension.xattrs
        for keyword, value in extension.pax.items():
            if keyword == b"path":
                member.name = value
            elif keyword == b"linkpath":
                member.link = value
            elif keyword == b"mtime":
                member.mtime = members.pax_time(value, "time")
            elif keyword == b"size":
                member.size = members.pax_number(value, "size")
            elif keyword == b"uid":
                member.uid = members.pax_number(value, "uid")
            elif keyword == b"gid":
                member.gid = members.pax_number(value, "gid")
        access = extension.pax.get(b"atime")
        if access is not None:
            member.atime = members.pax_time(access, "time")
        elif b"mtime" in extension.pax:
            member.atime = member.mtime
        if extension.name is not None:
            member.name = extension.name
        if extension.link is not None:
            member.link = extension.link

    def _make_file(self, member: Member, header: bytes, extension: Extension | None) -> None:
        """Count out the parts of a sparse file, whichever way they are written."""
        self._left = member.stored  # what _take may read of a map
        self._padding = -member.stored % RECORD
        most = self._bounds.record
        if member.kind == b"S":
            if header[257:265] != _GNU:
                msg = "a sparse file in an archive that is not GNU tar's"
                raise BadHeader(msg)
            segments = sparse.from_header(member, header, self._sparse_block, most)
        elif extension is not None and (extension.sparse or _is_sparse(extension.pax)):
            if member.kind not in {b"0", b"\0"}:
                msg = "sparse records for what is no file"
                raise BadHeader(msg)
            segments = sparse.from_pax(
                member, extension.pax, extension.sparse, self._sparse_map, most
            )
        else:
            member.kind = members.FILE
            return
        member.kind = members.FILE
        sparse.check(segments, member.size, self._left)
        member.segments = segments
        if member.size > self._bounds.layer_bytes:
            msg = f"its size {member.size} is over the bound of {self._bounds.layer_bytes}"
            raise BadHeader(msg)

    def _sparse_block(self) -> bytes:
        """One more record of an old GNU sparse map: it stands in front of the data."""
        return self._take(RECORD, "a sparse map")

    def _sparse_map(self) -> bytes:
        """One more record of a sparse map that is the first part of the data."""
        if self._left < RECORD:
            msg = "its sparse map is longer than its data"
            raise BadHeader(msg)
        self._left -= RECORD
        return self._take(RECORD, "a sparse map")


def _is_sparse(pax: dict[bytes, bytes]) -> bool:
    return any(keyword.startswith(b"GNU.sparse.") for keyword in pax)


def _gnu_time_or_prefix(header: bytes, name: bytes) -> tuple[int | None, bytes]:
    """GNU tar's access time; old archives made with Go have a prefix of the name there."""
    try:
        return members.number(header[345:357], "access time") * SECOND, name
    except BadHeader:
        prefix = header[345:500].partition(b"\0")[0]
        if not prefix.isascii():
            raise
        return None, prefix + b"/" + name
