"""One member of an archive, and what its header fields mean (POSIX pax and ustar, GNU tar)."""

from __future__ import annotations

import struct
from typing import Final

RECORD: Final = 512
SECOND: Final = 1_000_000_000
"""In nanoseconds."""

FILE: Final = b"0"
LINK: Final = b"1"
SYMLINK: Final = b"2"
CHAR: Final = b"3"
BLOCK_DEVICE: Final = b"4"
FOLDER: Final = b"5"
FIFO: Final = b"6"

HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
"""name, mode, uid, gid, size, mtime, checksum, type, link, magic+version, ..., prefix, rest."""

_EMPTY: Final[dict[str, bytes]] = {}


class Member:
    """One file of an archive.

    `name` and `link` are as the archive says them. Times are nanoseconds since the epoch. `size`
    is the file's, `stored` what the archive holds of it; `segments` (offset, length) are the parts
    of a sparse file, None for all others. `xattrs` is empty where there are none.
    """

    __slots__ = (
        "atime",
        "gid",
        "kind",
        "link",
        "mode",
        "mtime",
        "name",
        "segments",
        "size",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        name: bytes,
        kind: bytes,
        *,
        link: bytes = b"",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        atime: int | None = None,
        size: int = 0,
        stored: int | None = None,
        segments: list[tuple[int, int]] | None = None,
        xattrs: dict[str, bytes] = _EMPTY,
    ) -> None:
        self.name = name
        self.kind = kind
        self.link = link
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.atime = mtime if atime is None else atime
        self.size = size
        self.stored = size if stored is None else stored
        self.segments = segments
        self.xattrs = xattrs


class BadHeader(ValueError):
    """A field that means nothing; the text names the field, without the member."""


def number(field: bytes, what: str) -> int:
    """A numeric field: octal, or base-256 as GNU tar writes what is too large. Raises BadHeader."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if first & 0x40 else value - (1 << (bits - 1))
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        digits = field.strip(b" \0") or b"0"
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    msg = f"its {what} {field!r} is no number"
    raise BadHeader(msg)


def checksum_holds(header: bytes, wanted: bytes) -> bool:
    """Whether a header's checksum is right, counted unsigned or (old archives) signed."""
    total: int = sum(header) - sum(wanted) + 8 * 0x20
    found = number(wanted, "checksum")
    if total == found:
        return True
    signed: int = sum(struct.unpack("512b", header)) - sum(struct.unpack("8b", wanted)) + 8 * 0x20
    return signed == found


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The (keyword, value) pairs of an extended header, in order. Raises BadHeader."""
    found = []
    at, size = 0, len(data)
    while at < size:
        space = data.find(b" ", at, at + 20)
        length = data[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        if not space < end - 1 < size or data[end - 1] != 0x0A:
            msg = "its extended header is no list of records"
            raise BadHeader(msg)
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not keyword:
            msg = "its extended header has a record without a keyword"
            raise BadHeader(msg)
        found.append((keyword, value))
        at = end
    return found


def pax_number(value: bytes, what: str) -> int:
    """A decimal number of an extended header. Raises BadHeader."""
    if value.isdigit() and len(value) < 20:
        return int(value)
    msg = f"its {what} {value[:40]!r} is no number"
    raise BadHeader(msg)


def pax_time(value: bytes, what: str) -> int:
    """A time of an extended header, in nanoseconds; finer parts are cut off. Raises BadHeader."""
    negative = value.startswith(b"-")
    seconds, _, fraction = value[negative:].partition(b".")
    good = seconds.isdigit() and len(seconds) < 20 and (not fraction or fraction.isdigit())
    if not good:
        msg = f"its {what} {value[:40]!r} is no time"
        raise BadHeader(msg)
    found = int(seconds) * SECOND + int(fraction[:9].ljust(9, b"0"))
    return -found if negative else found
