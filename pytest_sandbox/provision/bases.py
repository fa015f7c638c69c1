"""The record of bootstrapped bases, in the user's data directory.

A bootstrapped base is imported under the pinned reference without its digest; its own SHA-256,
recorded here, takes the digest's place in image names. Its tar is kept (compressed) in the cache
directory, so that an engine that lost the image, or another engine, gets the very same base without
a second bootstrap.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

import msgspec

from pytest_sandbox.folders import DATA_VARIABLE, cache_folder, data_folder, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_sandbox.provision.bootstrap import BootstrappedBase

BASE_LABEL: Final = "org.pytest-sandbox.base"
BASE_SHA_LABEL: Final = "org.pytest-sandbox.base-sha256"
SUITE_LABEL: Final = "org.pytest-sandbox.base-suite"
"""Labels of an imported base: `1`, the SHA-256 of its tar, its suite."""


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """One bootstrapped base. `reference` has no digest; `created` is a POSIX time, `size` bytes of
    the plain tar."""

    reference: str
    arch: str
    sha256: str
    suite: str
    created: float
    size: int
    mirror: str = ""


class _Record(msgspec.Struct, kw_only=True):
    version: int = 1
    bases: list[Base] = []


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the record lives."""
    return data_folder(environ)


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the tars of bases live."""
    return cache_folder(environ)


def without_digest(reference: str) -> str:
    """`docker.io/library/debian:trixie-slim@sha256:...` ->
    `docker.io/library/debian:trixie-slim`."""
    return reference.split("@", 1)[0]


def recorded_bases() -> list[Base]:
    """Every recorded base. A record that cannot be read counts as empty: it is only a memory of
    what can be made again."""
    try:
        return msgspec.json.decode((data_dir() / "bases.json").read_bytes(), type=_Record).bases
    except (OSError, msgspec.DecodeError):
        return []


def find_base(reference: str, arch: str) -> Base | None:
    """The recorded base for a reference (its digest does not matter) and an architecture."""
    plain = without_digest(reference)
    for base in recorded_bases():
        if base.reference == plain and base.arch == arch:
            return base
    return None


def base_digests(arch: str) -> dict[str, str]:
    """Reference without digest -> SHA-256 (hex) of the bootstrapped base of that architecture: for
    image names."""
    return {base.reference: base.sha256 for base in recorded_bases() if base.arch == arch}


def record_base(reference: str, made: BootstrappedBase) -> Base:
    """Write a new base into the record, in place of an older one, and keep its tar."""
    base = Base(
        reference=without_digest(reference),
        arch=made.arch,
        sha256=made.sha256,
        suite=made.suite,
        created=time.time(),
        size=made.size,
        mirror=made.mirror,
    )
    _keep_tar(made)
    adopt_base(base)
    return base


def adopt_base(base: Base) -> None:
    """Write a base into the record whose image is on an engine, but whose tar is not kept."""
    with _locked():
        key = (base.reference, base.arch)
        others = [b for b in recorded_bases() if (b.reference, b.arch) != key]
        _write(sorted([*others, base], key=lambda b: (b.reference, b.arch)))


def forget_base(reference: str, arch: str) -> None:
    """Take a base out of the record (its images have other names from then on)."""
    plain = without_digest(reference)
    with _locked():
        bases = recorded_bases()
        kept = [b for b in bases if (b.reference, b.arch) != (plain, arch)]
        if len(kept) < len(bases):
            _write(kept)


@contextmanager
def open_tar(base: Base) -> Iterator[IO[bytes] | None]:
    """The plain tar of a recorded base as a stream, or None where the kept copy is gone or
    damaged."""
    path = _tar_path(base.sha256)
    if not path.is_file() or not _intact(path, base.sha256):
        path.unlink(missing_ok=True)
        yield None
        return
    import zstandard

    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        yield stream


def base_labels(base: Base) -> dict[str, str]:
    """The labels of the imported image."""
    return {BASE_LABEL: "1", BASE_SHA_LABEL: base.sha256, SUITE_LABEL: base.suite}


def kept_tars() -> list[Path]:
    """The kept tars that no recorded base needs any more."""
    wanted = {f"{base.sha256}.tar.zst" for base in recorded_bases()}
    folder = cache_dir() / "bases"
    return [p for p in sorted(folder.glob("*.tar.zst")) if p.name not in wanted]


def _tar_path(sha256: str) -> Path:
    return cache_dir() / "bases" / f"{sha256}.tar.zst"


def _keep_tar(made: BootstrappedBase) -> None:
    import zstandard

    path = _tar_path(made.sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.path.open("rb") as plain, aside.open("wb") as packed:
            zstandard.ZstdCompressor(level=3, threads=-1).copy_stream(plain, packed, size=made.size)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _intact(path: Path, sha256: str) -> bool:
    import zstandard

    digest = hashlib.sha256()
    try:
        with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
            while chunk := plain.read(1 << 20):
                digest.update(chunk)
    except (OSError, zstandard.ZstdError):
        return False
    return digest.hexdigest() == sha256


def _write(bases: list[Base]) -> None:
    path = data_dir() / "bases.json"
    aside = path.with_name(f".bases.json.{os.getpid()}")
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(_Record(bases=bases)), indent=1))
    aside.replace(path)


@contextmanager
def _locked() -> Iterator[None]:
    from filelock import FileLock

    folder = make_folder(data_dir(), DATA_VARIABLE)
    with FileLock(folder / "bases.lock"):
        yield
