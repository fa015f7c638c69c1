"""Bytes on their way: bounded decompression, a reader that only goes forward, a plain writer of PAX
tar.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Final, cast

from pytest_sandbox.archives.rules import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import WriteableBuffer

    from pytest_sandbox.archives.rules import Bounds

CHUNK: Final = 1 << 18
_XZ_OVERHEAD: Final = 16 << 20
_LATEST: Final = 8**11 - 1  # what a tar header's time field holds without extensions: the year 2242


class Meter:
    """Counts what comes out of an archive of `packed` bytes; raises Refused beyond its bounds."""

    def __init__(self, bounds: Bounds, packed: int) -> None:
        self.bytes = 0
        self._bounds = bounds
        self._packed = packed
        self._most = min(bounds.total, max(bounds.ratio_from, bounds.ratio * packed))

    def add(self, count: int) -> None:
        self.bytes += count
        if self.bytes <= self._most:
            return
        if self._most == self._bounds.total:
            msg = f"it unpacks to more than {self._most} bytes"
        else:
            msg = (
                f"its {self._packed} bytes unpack to more than {self._most},"
                f" over {self._bounds.ratio} times as many (a decompression bomb)"
            )
        raise Refused(msg)


def decompressed(file: IO[bytes], format: str, bounds: Bounds) -> IO[bytes]:
    """The tar stream inside `file` (`tar`, `tar.gz`, `tar.xz`, `tar.bz2` or `tar.zst`)."""
    if format == "tar.gz":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb"))
    if format == "tar.bz2":
        return cast("IO[bytes]", bz2.BZ2File(file, "rb"))
    if format == "tar.xz":
        return io.BufferedReader(_Xz(file, bounds.window + _XZ_OVERHEAD), CHUNK)
    if format == "tar.zst":
        import zstandard

        decoder = zstandard.ZstdDecompressor(max_window_size=bounds.window)
        return cast(
            "IO[bytes]", decoder.stream_reader(file, read_across_frames=True, closefd=False)
        )
    return file


class _Xz(io.RawIOBase):
    """lzma.LZMAFile has no limit for the memory that a stream's header asks for; this has."""

    def __init__(self, file: IO[bytes], memory: int) -> None:
        super().__init__()
        self._file = file
        self._memory = memory
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        while True:
            data = b""
            if self._decoder.eof:
                data = self._next_stream()
                if not data:
                    return 0
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=self._memory)
            elif self._decoder.needs_input:
                data = self._file.read(CHUNK)
                if not data:
                    msg = "the xz stream is cut short"
                    raise EOFError(msg)
            out = self._decoder.decompress(data, len(view))
            if out:
                view[: len(out)] = out
                return len(out)

    def _next_stream(self) -> bytes:
        data = self._decoder.unused_data.lstrip(b"\0")
        while not data:
            more = self._file.read(CHUNK)
            if not more:
                return b""
            data = more.lstrip(b"\0")
        return data


class Forward:
    """A stream for tarfile to parse: it never goes back, and header reads stay within a budget.

    tarfile reads a PAX header, a GNU long name or a sparse map whole into memory, whatever size its
    header claims.
    """

    def __init__(self, raw: IO[bytes], count: Callable[[int], None]) -> None:
        self._raw = raw
        self._count = count
        self._position = 0
        self.budget: int | None = None
        self.last = b""
        """What the last read gave."""

    def read(self, size: int) -> bytes:
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                msg = "the headers of one member are too large"
                raise Refused(msg)
        blocks = bytearray()
        while len(blocks) < size:
            block = self._block(min(CHUNK, size - len(blocks)))
            if not block:
                break
            blocks += block
        self.last = bytes(blocks)
        return self.last

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        """Skip forward; at the end of the stream it stays there."""
        if position < self._position:
            msg = "a member claims to begin before the one that it follows"
            raise Refused(msg)
        while self._position < position and self._block(min(CHUNK, position - self._position)):
            pass
        return self._position

    def drain(self) -> None:
        """Read to the end, so that the compressed stream's own checksum is checked."""
        while self._block(CHUNK):
            pass

    def _block(self, size: int) -> bytes:
        try:
            block = self._raw.read(size)
        except OSError as error:
            if error.errno is not None:  # a real fault of the disk or the pipe, not of the archive
                raise
            msg = f"it is damaged: {error}"
            raise Refused(msg) from error
        except (EOFError, lzma.LZMAError, zlib.error) as error:
            msg = f"it is damaged: {error}"
            raise Refused(msg) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # without importing zstandard for every format
                raise
            msg = f"it is damaged: {error}"
            raise Refused(msg) from error
        self._position += len(block)
        self._count(len(block))
        return block


def members(stream: Forward, bounds: Bounds) -> Iterator[tarfile.TarInfo]:
    """The members of a tar stream, one in memory at a time; read a body at `offset_data`. Raises
    Refused.
    """
    tar: tarfile.TarFile | None = None
    seen = 0
    while True:
        stream.budget = bounds.header
        try:
            if tar is None:
                tar = tarfile.TarFile(
                    fileobj=cast("IO[bytes]", stream),
                    mode="r",
                    encoding="utf-8",
                    errors="surrogateescape",
                )
            info = tar.next()
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
            msg = f"its tar headers are damaged: {str(error) or type(error).__name__}"
            raise Refused(msg) from error
        stream.budget = None
        if info is None:
            if stream.last.strip(b"\0"):
                # tarfile takes a damaged header behind the first for the end of the archive
                msg = f"its tar header at byte {stream.tell() - len(stream.last)} is damaged"
                raise Refused(msg)
            return
        # else tarfile keeps every member and every global header that it has seen
        tar.members.clear()  # type: ignore[attr-defined]  # typeshed knows only getmembers()
        tar.pax_headers = {}
        seen += 1
        if seen > bounds.entries:
            msg = f"it holds more than {bounds.entries} members"
            raise Refused(msg)
        if info.size < 0:
            msg = f"member {info.name!r} has a negative size"
            raise Refused(msg)
        yield info


class TarWriter:
    """Writes PAX tar; unlike tarfile it keeps nothing of what it wrote."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def header(self, info: tarfile.TarInfo) -> None:
        """A member without a body."""
        info.mtime = clamp_time(info.mtime)
        self._out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def file(self, info: tarfile.TarInfo, read: Callable[[int], bytes]) -> None:
        """A regular member whose body of `info.size` bytes comes from `read`; EOFError if that ends
        early.
        """
        self.header(info)
        left = info.size
        while left:
            block = read(min(CHUNK, left))
            if not block:
                msg = f"{info.name} ends {left} bytes early"
                raise EOFError(msg)
            self._out.write(block)
            left -= len(block)
        self._out.write(bytes(-info.size % tarfile.BLOCKSIZE))

    def close(self) -> None:
        """Write the end of the archive; `out` stays open."""
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))


def clamp_time(mtime: float) -> float:
    """A time that every tar reader takes: 0 for none, for one before 1970 or too far away."""
    if not (math.isfinite(mtime) and 0 <= mtime <= _LATEST):
        return 0
    return int(mtime) if mtime == int(mtime) else mtime  # a float costs a PAX header of 1 KiB
