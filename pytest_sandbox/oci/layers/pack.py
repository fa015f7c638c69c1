"""Packs an archive on its way out: hashes it, compresses it, hashes that, writes it.

A thread of its own does so, a few blocks behind who makes them.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from pytest_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_AHEAD: Final = 12
_GATHER: Final = 128 << 10
_GZIP_LEVEL: Final = 2
_ZSTD_LEVEL: Final = 3

KINDS: Final = ("", "gzip", "zstd")


class Packed(NamedTuple):
    """Digests and sizes of an archive: as it is (a layer's diff id), and as it was written."""

    diff_id: str
    size: int
    digest: str
    packed: int


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Packer:
    """Takes an archive block by block and writes it to a descriptor, which stays the caller's.

    `kind` is one of KINDS. The same archive and kind give the same bytes, for one version of the
    compressing library.
    """

    def __init__(self, descriptor: int, kind: str = "") -> None:
        if kind not in KINDS:
            what = f"layers cannot be packed with {kind!r}"
            raise UsageError(what, next_step=f"use one of {', '.join(filter(None, KINDS))}")
        self.size = 0
        self._descriptor = descriptor
        self._kind = kind
        self._plain = hashlib.sha256()
        self._hash = hashlib.sha256() if kind else self._plain
        self._written = 0
        self._waiting: list[bytes] = []
        self._gathered = 0
        self._blocks: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="pack", daemon=True)
        self._thread.start()

    def put(self, block: bytes) -> None:
        """Add bytes. Raises OSError when writing has failed."""
        self.size += len(block)
        self._waiting.append(block)
        self._gathered += len(block)
        if self._gathered >= _GATHER:
            self._hand_on()

    def finish(self) -> Packed:
        """Write the rest and wait for it. Raises OSError."""
        self._hand_on()
        self._blocks.put(None)
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        diff_id, digest = self._plain.hexdigest(), self._hash.hexdigest()
        return Packed(f"sha256:{diff_id}", self.size, f"sha256:{digest}", self._written)

    def close(self) -> None:
        """Let the thread end."""
        if self._thread.is_alive():
            self._blocks.put(None)
            self._thread.join()

    def _hand_on(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._waiting:
            self._blocks.put(b"".join(self._waiting))
        self._waiting, self._gathered = [], 0

    def _work(self) -> None:
        try:
            for block in self._pack():
                self._write(block)
        except BaseException as error:
            self._failed = error
            while self._blocks.get() is not None:
                pass

    def _taken(self) -> Iterator[bytes]:
        while (block := self._blocks.get()) is not None:
            self._plain.update(block)
            yield block

    def _pack(self) -> Iterator[bytes]:
        if not self._kind:
            yield from self._taken()
            return
        compressor = _compressor(self._kind)
        for block in self._taken():
            yield compressor.compress(block)
        yield compressor.flush()

    def _write(self, block: bytes) -> None:
        if self._kind:
            self._hash.update(block)
        self._written += len(block)
        view = memoryview(block)
        while view:
            view = view[os.write(self._descriptor, view) :]


def _compressor(kind: str) -> _Compressor:
    if kind == "gzip":
        from isal import isal_zlib

        return isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    import zstandard

    made: Any = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
    return made  # type: ignore[no-any-return]
