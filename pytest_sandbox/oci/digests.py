"""Digests: what names a blob, and holds its bytes to its name."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from pytest_sandbox.errors import Blame, InvalidImage

_GRAMMAR: Final = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")


def check_digest(text: object, *, where: str = "") -> str:
    """`sha256:` with 64 lower-case hex digits, returned as it is (image-spec, descriptor.md).

    `where` says in an error what holds it. Raises InvalidImage, also for other algorithms.
    """
    if isinstance(text, str) and _SHA256.fullmatch(text):
        return text
    holder = f"{where}: " if where else ""
    shown = text[:160] if isinstance(text, str) else type(text).__name__
    if isinstance(text, str) and _GRAMMAR.fullmatch(text) and not text.startswith("sha256:"):
        what = f"{holder}the digest {shown!r} is of an algorithm that is not supported"
    else:
        what = f"{holder}{shown!r} is no digest"
    raise InvalidImage(what, next_step="expected is sha256: and 64 lower-case hex digits")


def hex_of(digest: str) -> str:
    """The hex digits of a digest, which name its file in a store."""
    return check_digest(digest).partition(":")[2]


def digest_of(data: bytes) -> str:
    """The digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Hasher:
    """Counts and hashes bytes as they come, against a digest and a size (None: any size)."""

    def __init__(self, digest: str, size: int | None = None) -> None:
        self.digest = check_digest(digest)
        self.wanted = size
        self.reset()

    def reset(self) -> None:
        """Forget what came."""
        self.size = 0
        self._hash = hashlib.sha256()

    def update(self, block: bytes | memoryview) -> None:
        """Add bytes. Raises InvalidImage as soon as they are more than they should be."""
        self.size += len(block)
        if self.wanted is not None and self.size > self.wanted:
            raise wrong_size(self.digest, self.wanted, f"more than {self.wanted}")
        self._hash.update(block)

    def found(self) -> str:
        """The digest of what came."""
        return "sha256:" + self._hash.hexdigest()

    def check(self, *, source: str = "") -> None:
        """Hold size, then digest, to what was wanted. Raises InvalidImage."""
        if self.wanted is not None and self.size != self.wanted:
            raise wrong_size(self.digest, self.wanted, str(self.size), source=source)
        found = self.found()
        if found != self.digest:
            raise wrong_digest(self.digest, found, source=source)


def check_bytes(data: bytes, digest: str, size: int | None = None, *, source: str = "") -> None:
    """Hold whole bytes to their size and digest. Raises InvalidImage."""
    if size is not None and len(data) != size:
        raise wrong_size(digest, size, str(len(data)), source=source)
    found = digest_of(data)
    if found != check_digest(digest):
        raise wrong_digest(digest, found, source=source)


def wrong_size(digest: str, wanted: int, found: str, *, source: str = "") -> InvalidImage:
    """The error for bytes that are too many or too few; `source` is where they came from."""
    holder = f"{source}: " if source else ""
    return InvalidImage(
        f"{holder}{digest} has {found} bytes, not {wanted}",
        blame=Blame.UPSTREAM,
        next_step="do not use this image; ask who serves it",
    )


def wrong_digest(digest: str, found: str, *, source: str = "") -> InvalidImage:
    """The error for bytes that are not what their name says."""
    holder = f"{source}: " if source else ""
    return InvalidImage(
        f"{holder}the content has the digest {found}, not {digest}",
        blame=Blame.UPSTREAM,
        next_step="do not use this image; ask who serves it",
    )
