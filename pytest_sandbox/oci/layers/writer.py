"""Writes archives: ustar headers, pax records where those are too small. Same files, same bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.layers.members import HEADER, RECORD, SECOND

if TYPE_CHECKING:
    from pytest_sandbox.oci.layers.members import Member

END: Final = bytes(2 * RECORD)
"""What an archive ends with."""

_OCTAL7: Final = 0o7777777
_OCTAL11: Final = 0o77777777777


def header(member: Member, device: tuple[int, int] = (0, 0)) -> bytes:
    """Everything that stands in front of a member's content. `device`: major and minor number."""
    pax: dict[bytes, bytes] = {}
    name = _text(pax, b"path", member.name)
    link = _text(pax, b"linkpath", member.link)
    uid = _number(pax, b"uid", member.uid, _OCTAL7)
    gid = _number(pax, b"gid", member.gid, _OCTAL7)
    size = _number(pax, b"size", member.size, _OCTAL11)
    seconds, rest = divmod(member.mtime, SECOND)
    if rest or not 0 <= seconds <= _OCTAL11:
        pax[b"mtime"] = _time(member.mtime)
        seconds = min(max(seconds, 0), _OCTAL11)
    for key, value in member.xattrs.items():
        pax[b"SCHILY.xattr." + os.fsencode(key)] = value
    front = b""
    if pax:
        records = b"".join(_record(key, pax[key]) for key in sorted(pax))
        short = b"PaxHeaders/" + name.rstrip(b"/")[-80:]
        front = _ustar(short, b"x", (0o644, 0, 0, len(records), 0), b"", (0, 0))
        front += records + bytes(-len(records) % RECORD)
    numbers = (member.mode, uid, gid, size, seconds)
    return front + _ustar(name, member.kind, numbers, link, device)


def padding(size: int) -> bytes:
    """What fills a member's content up to a whole record."""
    return bytes(-size % RECORD)


def _text(pax: dict[bytes, bytes], key: bytes, text: bytes) -> bytes:
    if len(text) <= 100 and text.isascii():
        return text
    pax[key] = text
    shown = bytes(byte if byte < 0x80 else 0x5F for byte in text[:100])
    # what reads no pax records must not take it for a folder, or the other way round
    return shown.rstrip(b"/")[:99] + b"/" if text.endswith(b"/") else shown.rstrip(b"/")


def _number(pax: dict[bytes, bytes], key: bytes, value: int, most: int) -> int:
    if 0 <= value <= most:
        return value
    pax[key] = b"%d" % value
    return 0


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), SECOND)
    text = b"%s%d" % (sign, seconds)
    return text + (b".%09d" % rest).rstrip(b"0") if rest else text


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(b"%d" % len(body))
    if len(b"%d" % length) != len(b"%d" % len(body)):
        length += 1
    return b"%d" % length + body


def _ustar(
    name: bytes, kind: bytes, numbers: tuple[int, ...], link: bytes, device: tuple[int, int]
) -> bytes:
    """One header; `numbers` are mode, uid, gid, size and seconds."""
    mode, uid, gid, size, seconds = numbers
    fields = (
        name,
        b"%07o\0" % mode,
        b"%07o\0" % uid,
        b"%07o\0" % gid,
        b"%011o\0" % size,
        b"%011o\0" % seconds,
        b" " * 8,
        kind,
        link,
        b"ustar\x0000",
        b"",
        b"",
        b"%07o\0" % device[0],
        b"%07o\0" % device[1],
        b"",
        b"",
    )
    block = HEADER.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
