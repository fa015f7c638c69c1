"""Sparse files in archives: GNU tar's type S, and its three formats in pax headers.

(GNU tar manual, "Storing Sparse Files".) A map that does not fit its file is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.layers.members import RECORD, BadHeader, number, pax_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_sandbox.oci.layers.members import Member

Segments = list[tuple[int, int]]

_PAIR: Final = 24


def from_header(member: Member, header: bytes, more: Callable[[], bytes], most: int) -> Segments:
    """The map of a member of type S; sets its real size. `more()` reads a record of the map.

    Raises BadHeader, also for a map of more than `most` bytes.
    """
    segments: Segments = []
    block, pairs, extended = header[386:482], 4, header[482]
    member.size = number(header[483:495], "real size")
    read = 0
    while True:
        for at in range(0, pairs * _PAIR, _PAIR):
            if not block[at]:
                break
            offset = number(block[at : at + 12], "sparse offset")
            segments.append((offset, number(block[at + 12 : at + _PAIR], "sparse length")))
        if not extended:
            return segments
        block, pairs = more(), 21
        read += RECORD
        if len(block) < RECORD or read > most:
            msg = f"its sparse map is cut off or over the bound of {most} bytes"
            raise BadHeader(msg)
        extended = block[504]


def from_pax(
    member: Member,
    pax: Mapping[bytes, bytes],
    pairs: Sequence[bytes],
    more: Callable[[], bytes],
    most: int,
) -> Segments:
    """The map that pax records give; sets the real size, in format 1.0 also the name.

    `pairs` are the values of GNU.sparse.offset and numbytes in their order (format 0.0); `more()`
    reads a record from the start of the data (format 1.0). Raises BadHeader.
    """
    version = (pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor"))
    size = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size"))
    if b"GNU.sparse.name" in pax:
        member.name = pax[b"GNU.sparse.name"]
    if size is None:
        msg = "a sparse file without a real size"
        raise BadHeader(msg)
    member.size = pax_number(size, "real size")
    if version == (b"1", b"0"):
        return _from_data(more, most)
    if version not in {(None, None), (b"0", b"0"), (b"0", b"1")}:
        msg = f"a sparse file of the unknown format {version!r}"
        raise BadHeader(msg)
    table = pax.get(b"GNU.sparse.map")
    numbers = table.split(b",") if table is not None else list(pairs)
    return _pairs([pax_number(value, "sparse map") for value in numbers])


def _from_data(more: Callable[[], bytes], most: int) -> Segments:
    """Format 1.0: lines of decimal numbers, the count of pairs first, filled up to a record."""
    text = b""
    wanted = 1
    lines: list[bytes] = []
    read = 0
    while len(lines) < wanted:
        block = more()
        read += RECORD
        if len(block) < RECORD or read > most:
            msg = f"its sparse map is cut off or over the bound of {most} bytes"
            raise BadHeader(msg)
        *whole, text = (text + block).split(b"\n")
        lines += whole
        if lines and wanted == 1:
            wanted = 1 + 2 * pax_number(lines[0], "sparse map")
    return _pairs([pax_number(line, "sparse map") for line in lines[1:wanted]])


def _pairs(numbers: Sequence[int]) -> Segments:
    if len(numbers) % 2:
        msg = "its sparse map ends in the middle of a pair"
        raise BadHeader(msg)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def check(segments: Segments, size: int, stored: int) -> None:
    """Hold a map to its file: in order, inside of `size`, and as long as what is stored."""
    end = total = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > size:
            msg = f"its sparse map has a part ({offset}, {length}) that does not fit"
            raise BadHeader(msg)
        end = offset + length
        total += length
    if total != stored:
        msg = f"its sparse map has {total} bytes, the archive {stored}"
        raise BadHeader(msg)
