"""Blobs by digest: written with digest and size verified, and verified again when read."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, BinaryIO, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage
from pytest_sandbox.oci.digests import Hasher, check_bytes, digest_of, hex_of
from pytest_sandbox.oci.store.files import names, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_sandbox.oci.descriptors import Descriptor

_BLOCK: Final = 1 << 20


class Blobs:
    """The files blobs/sha256/<hex> of a store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str) -> Path:
        """The file of a blob, whether it is there or not. Raises InvalidImage for no digest."""
        return self._folder / hex_of(digest)

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether a blob is there (with this size)."""
        try:
            found = self.path(digest).stat().st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    def all(self) -> list[str]:
        """The digests of all blobs."""
        return [f"sha256:{name}" for name in names(self._folder)]

    def put(self, data: bytes) -> str:
        """Keep small bytes; their digest."""
        digest = digest_of(data)
        if not self.has(digest, len(data)):
            write_bytes(self.path(digest), data)
        else:
            self.touch(digest)
        return digest

    def read(self, digest: str, limit: int | None = None) -> bytes:
        """The whole of a small blob, verified. Without `limit`, its size was bounded on its way in.

        Raises ImageUnavailable if it is not there, InvalidImage for more than `limit` bytes or a
        wrong digest (the blob is removed then).
        """
        with self.open(digest) as file:
            data = file.read(-1 if limit is None else limit + 1)
        if limit is not None and len(data) > limit:
            msg = f"the blob {digest} has more than {limit} bytes"
            raise InvalidImage(msg)
        try:
            check_bytes(data, digest)
        except InvalidImage as wrong:
            raise self._damaged(digest, wrong) from None
        return data

    def open(self, digest: str) -> BinaryIO:
        """The file of a blob, not verified. Raises ImageUnavailable if it is not there."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            msg = f"the blob {digest} is not in the store"
            raise ImageUnavailable(
                msg, blame=Blame.HOST, next_step="pull the image again with --pull=always"
            ) from None

    def blocks(self, digest: str) -> Iterator[bytes]:
        """The bytes of a blob; raises InvalidImage at the end if they are not what they should be,
        and removes the blob.
        """
        found = Hasher(digest)
        with self.open(digest) as file:
            while block := file.read(_BLOCK):
                found.update(block)
                yield block
        try:
            found.check()
        except InvalidImage as wrong:
            raise self._damaged(digest, wrong) from None

    def check(self, digest: str) -> int:
        """Verify a blob; its size. Raises as `blocks` does, but leaves the blob alone."""
        found = Hasher(digest)
        with self.open(digest) as file:
            while block := file.read(_BLOCK):
                found.update(block)
        if found.found() != digest:
            msg = f"the blob {digest} has the content of {found.found()}"
            raise InvalidImage(msg, blame=Blame.HOST, next_step=_AGAIN)
        return found.size

    def _damaged(self, digest: str, wrong: InvalidImage) -> InvalidImage:
        self.remove(digest)
        msg = f"a blob of the store is damaged: {wrong.what}"
        return InvalidImage(msg, blame=Blame.HOST, next_step=_AGAIN)

    def writer(self, folder: Path, descriptor: Descriptor, *, verified: bool = False) -> BlobWriter:
        """A new file in `folder` (of the same file system) that becomes the blob."""
        return BlobWriter(folder, descriptor, self.path(descriptor.digest), verified=verified)

    def touch(self, digest: str) -> None:
        """Note that a blob is wanted: a sweep goes by its age."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path(digest))

    def age(self, digest: str) -> float:
        """Seconds since a blob was made or wanted; 0 if it is not there."""
        try:
            return time.time() - self.path(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def remove(self, digest: str) -> int:
        """Remove a blob; its size in bytes, 0 if it was not there."""
        try:
            size = self.path(digest).stat().st_size
            self.path(digest).unlink()
        except FileNotFoundError:
            return 0
        return size


_AGAIN: Final = "pull or import the image again"


class BlobWriter:
    """A blob that is being written; others may read `descriptor` (a file's) behind it.

    With `verified` its source holds the bytes to size and digest, and they are not hashed again.
    """

    def __init__(
        self, folder: Path, wanted: Descriptor, target: Path, *, verified: bool = False
    ) -> None:
        self._path = folder / f"blob-{os.urandom(8).hex()}"
        self._target = target
        self._hasher = None if verified else Hasher(wanted.digest, wanted.size)
        self.size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(self._path, flags, 0o600)

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes. Raises InvalidImage for more than there should be."""
        if self._hasher is not None:
            self._hasher.update(data)
        rest = memoryview(data)
        while rest:
            written = os.write(self.descriptor, rest)
            rest = rest[written:]
            self.size += written

    def check(self) -> None:
        """Hold what was written to size and digest. Raises InvalidImage."""
        if self._hasher is not None:
            self._hasher.check()

    def publish(self) -> None:
        """Make it the blob; `check` before."""
        self._path.chmod(0o400)
        self._path.rename(self._target)

    def close(self) -> None:
        """Give up what was not published."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
