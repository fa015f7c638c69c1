"""Archives for tests, byte by byte: also those that no tool would write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from pytest_sandbox.oci.layers.apply import Applier
from pytest_sandbox.oci.layers.decompress import Unpacked
from pytest_sandbox.oci.layers.reader import Reader
from pytest_sandbox.oci.layers.unpack import apply_layer, own_ids

END = bytes(1024)
POSIX, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)


def octal(value, width):
    return b"%0*o\0" % (width - 1, value)


def binary(value, width):
    """GNU tar's base-256 form."""
    return (value % (1 << (8 * width)) | 0x80 << (8 * (width - 1))).to_bytes(width, "big")


def header(
    name, kind=b"0", *, size=0, mode=0o644, uid=None, gid=None, mtime=0, link=b"", magic=POSIX,
    prefix=b"", rest=b"", checksum=None,
):  # fmt: skip
    """One header of 512 bytes; numbers may be given as raw bytes."""
    uid = os.geteuid() if uid is None else uid
    gid = os.getegid() if gid is None else gid
    fields = ((mode, 8), (uid, 8), (gid, 8), (size, 12), (mtime, 12))
    numbers = [v if isinstance(v, bytes) else octal(v, width) for v, width in fields]
    front = name.ljust(100, b"\0") + b"".join(numbers)
    block = front + b" " * 8 + kind + link.ljust(100, b"\0") + magic
    block = block.ljust(329, b"\0") + octal(0, 8) + octal(0, 8)
    block = block.ljust(345, b"\0") + prefix
    block = block.ljust(345 + max(len(prefix), 155), b"\0")[:512].ljust(512, b"\0")
    if rest:
        block = block[: 512 - len(rest)] + rest
    total = sum(block) if checksum is None else checksum
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data):
    return data + bytes(-len(data) % 512)


def file(name, data=b"", **more):
    return header(name, size=len(data), **more) + padded(data)


def folder(name, mode=0o755, **more):
    return header(name.rstrip(b"/") + b"/", b"5", mode=mode, **more)


def symlink(name, target, **more):
    return header(name, b"2", mode=0o777, link=target, **more)


def hardlink(name, target, **more):
    return header(name, b"1", link=target, **more)


def records(*pairs):
    out = b""
    for key, value in pairs:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while len(b"%d" % length) + len(body) != length:
            length += 1
        out += b"%d" % length + body
    return out


def pax(*pairs, kind=b"x"):
    data = records(*pairs)
    return header(b"PaxHeaders/x", kind, size=len(data)) + padded(data)


def gnu_long(text, kind=b"L"):
    data = text + b"\0"
    return header(b"././@LongLink", kind, size=len(data), magic=GNU) + padded(data)


def descriptor_of(data):
    """An open file that holds `data`."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return os.dup(file.fileno())


def members(data, bounds=DEFAULT_BOUNDS):
    """[(member, content)] of an archive."""
    found = []
    stream = descriptor_of(data)
    source = Unpacked(stream, bounds, name="layer 1")
    try:
        reader = Reader(source, bounds, name="layer 1")
        while (member := reader.next()) is not None:
            with tempfile.TemporaryFile(buffering=0) as out:
                reader.write_to(out.fileno())
                out.seek(0)
                found.append((member, out.read()))
    finally:
        source.close()
        os.close(stream)
    return found


def apply(root: Path, data, *, bounds=DEFAULT_BOUNDS, end=True, **more):
    """Apply one layer to a folder."""
    root.mkdir(exist_ok=True)
    stream = descriptor_of(data + END if end else data)
    target = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return apply_layer(stream, target, bounds, layer="layer 1", **more)
    finally:
        os.close(stream)
        os.close(target)


def unpack_plain(root: Path, data):
    """Apply an archive in which whiteouts mean nothing."""
    stream = descriptor_of(data + END)
    target = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    source = Unpacked(stream, DEFAULT_BOUNDS)
    try:
        reader = Reader(source, DEFAULT_BOUNDS)
        ids = own_ids()
        return Applier(target, reader, DEFAULT_BOUNDS, ids=ids, whiteouts=False).apply()
    finally:
        source.close()
        os.close(stream)
        os.close(target)


def listing(root: Path):
    """Every path below a folder, sorted, folders with a slash behind them."""
    found = []
    for top, folders, files in os.walk(os.fsencode(root)):
        for name in [*folders, *files]:
            path = Path(os.fsdecode(top), os.fsdecode(name))
            slash = "/" if path.is_dir() and not path.is_symlink() else ""
            found.append(f"{path.relative_to(root)}{slash}")
    return sorted(found)
