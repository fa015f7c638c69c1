"""The unpacked bytes of a layer: gzip, zstd or plain by its first bytes, hashed on the way.

A thread of its own reads, unpacks and hashes; all three let other threads run. It stays a few
blocks ahead of who takes them, and no block is large, whatever the stream says.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, cast

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import raised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.oci.bounds import Bounds

BLOCK: Final = 256 << 10
"""The most bytes of one block."""
_READ: Final = 64 << 10
_AHEAD: Final = 12
_EMPTY_MEMBERS: Final = 1000

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_FOREIGN: Final = {
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
}


def is_zstd(head: bytes) -> bool:
    """Whether bytes begin with a frame of zstd, also a skippable one (RFC 8878, 3.1.2)."""
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[:1] and 0x50 <= head[0] <= 0x5F
    return head.startswith(_ZSTD) or bool(skippable)


class Unpacked:
    """The unpacked blocks of what a descriptor gives.

    `name` stands in front of every error. After the last block `digest`, `size` (unpacked bytes)
    and `packed` (bytes read) are whole. The descriptor stays the caller's.
    """

    def __init__(self, descriptor: int, bounds: Bounds, *, name: str = "layer") -> None:
        self.name = name
        self.size = 0
        self.packed = 0
        self._descriptor = descriptor
        self._bounds = bounds
        self._hash = hashlib.sha256()
        self._blocks: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stopped = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="unpack", daemon=True)
        self._thread.start()

    @property
    def digest(self) -> str:
        """The digest of all unpacked bytes (a layer's diff id)."""
        return "sha256:" + self._hash.hexdigest()

    def take(self) -> bytes:
        """The next block; empty at the end. Raises InvalidImage, or OSError from reading."""
        if self._ended:
            return b""
        block = self._blocks.get()
        if isinstance(block, BaseException):
            self._ended = True
            raise block
        if not block:
            self._ended = True
        return block

    def close(self) -> None:
        """Let the thread end, wherever it is; one that waits for bytes is left to itself."""
        self._stopped = True
        while self._thread.is_alive() and not self._ended:
            try:
                self._blocks.get(timeout=0.01)
            except queue.Empty:
                break

    def _work(self) -> None:
        end: bytes | BaseException = b""
        try:
            for block in self._unpack():
                self.size += len(block)
                self._check()
                self._hash.update(block)
                self._blocks.put(block)
                if self._stopped:
                    return
        except BaseException as error:
            end = error
        self._blocks.put(end)

    def _check(self) -> None:
        bounds = self._bounds
        if self.size > bounds.layer_bytes:
            self._fail(f"it unpacks to more than {bounds.layer_bytes} bytes", "layer_bytes")
        if self.size > bounds.ratio_floor and self.size > bounds.ratio * self.packed:
            found = f"{self.size} bytes from {self.packed}"
            self._fail(f"it unpacks to more than {bounds.ratio} times its size ({found})", "ratio")

    def _fail(self, what: str, bound: str = "") -> NoReturn:
        msg = f"{self.name}: {what}"
        raise InvalidImage(msg, next_step=raised(bound) if bound else "") from None

    def _read(self, most: int = _READ) -> bytes:
        data = os.read(self._descriptor, most)
        self.packed += len(data)
        return data

    def _unpack(self) -> Iterator[bytes]:
        head = self._read()
        while head and len(head) < 8 and (more := self._read()):
            head += more
        if head.startswith(_GZIP):
            return self._gzip(head)
        if is_zstd(head):
            return self._zstd(head)
        for magic, kind in _FOREIGN.items():
            if head.startswith(magic):
                what = f"it is packed with {kind}, expected gzip, zstd or a plain archive"
                self._fail(what)
        return self._plain(head)

    def _plain(self, block: bytes) -> Iterator[bytes]:
        while block:
            yield block
            block = self._read(BLOCK)

    def _gzip(self, data: bytes) -> Iterator[bytes]:
        from isal import igzip_lib

        broken: Any = igzip_lib.error
        empty = 0
        while data:
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            produced = False
            while True:
                try:
                    block = member.decompress(data, BLOCK)
                except broken as error:
                    self._fail(f"its gzip stream is broken: {error}")
                if block:
                    produced = True
                    yield block
                if member.eof:
                    break
                data = self._read() if member.needs_input else b""
                if member.needs_input and not data:
                    self._fail("its gzip stream ends too early")
            empty = 0 if produced else empty + 1
            if empty > _EMPTY_MEMBERS:
                self._fail("its gzip stream has too many empty members")
            data = member.unused_data or self._read()
            while data and not data.strip(b"\0"):  # padding of tapes
                data = self._read()
            if 0 < len(data) < 2:
                data += self._read()
            if data and not data.startswith(_GZIP):
                self._fail("there is something behind its gzip stream")

    def _zstd(self, head: bytes) -> Iterator[bytes]:
        import zstandard

        unpacker = zstandard.ZstdDecompressor(max_window_size=self._bounds.zstd_window)
        source = cast("IO[bytes]", _Source(self, head))
        with unpacker.stream_reader(
            source, read_size=_READ, read_across_frames=True, closefd=False
        ) as reader:
            while True:
                try:
                    block = reader.read(BLOCK)
                except zstandard.ZstdError as error:
                    what = "its zstd stream is broken or needs a window of more than "
                    what += f"{self._bounds.zstd_window} bytes: {error}"
                    self._fail(what, "zstd_window")
                if not block:
                    return
                yield block


class _Source:
    """What the reader of zstd reads from."""

    def __init__(self, stream: Unpacked, head: bytes) -> None:
        self._stream = stream
        self._head = head

    def read(self, size: int) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._stream._read(size)
