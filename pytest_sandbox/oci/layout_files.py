"""The files of an OCI layout or a docker-archive: in a folder, or in a tar, packed or not.

A tar is read once, as a stream, into files that only we name: what it calls them is a key here and
never a path.
"""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import stat
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from pytest_sandbox.errors import Blame, InvalidImage, UsageError
from pytest_sandbox.oci import linux

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.oci.bounds import Bounds

_MOST_FILES: Final = 10_000
_LINKS: Final = 8


class Files(Protocol):
    """Files by their names, as `blobs/sha256/<hex>`."""

    def has(self, name: str) -> bool:
        """Whether there is a regular file of that name."""

    def open(self, name: str) -> BinaryIO:
        """The file, at its start. Raises InvalidImage where there is none."""


def read_file(files: Files, name: str, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises InvalidImage."""
    with files.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        msg = f"{name} has more than {limit} bytes"
        raise InvalidImage(msg, next_step="raise the bound if you trust where it comes from")
    return data


def open_files(path: Path, work: Path, bounds: Bounds) -> Files:
    """The files of the folder or tar at `path`; `work` is a folder for those of a tar.

    Raises UsageError where there is nothing, InvalidImage for a tar that is none.
    """
    if path.is_dir():
        return FolderFiles(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as wrong:
        msg = f"{path} cannot be read: {wrong.strerror}"
        raise UsageError(msg, next_step="give an OCI layout or a docker-archive") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = f"{path} is neither a folder nor a file"
            raise UsageError(msg, next_step="give an OCI layout or a docker-archive")
        return TarFiles(descriptor, work, bounds, name=path.name)
    finally:
        os.close(descriptor)


class FolderFiles:
    """The files below a folder; links that lead elsewhere are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _open(self, name: str) -> int:
        top = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            found = linux.openat2(top, name, flags, resolve=linux.RESOLVE_BENEATH)
        finally:
            os.close(top)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise FileNotFoundError(errno.ENOENT, "no regular file", name)
        return found

    def has(self, name: str) -> bool:
        """See Files."""
        try:
            os.close(self._open(name))
        except OSError:
            return False
        return True

    def open(self, name: str) -> BinaryIO:
        """See Files."""
        try:
            return os.fdopen(self._open(name), "rb")
        except OSError as wrong:
            msg = f"{self._folder} has no file {name}: {wrong.strerror}"
            raise InvalidImage(msg, blame=Blame.HOST) from None


class TarFiles:
    """The files of a tar, unpacked once into `work` under names of ours."""

    def __init__(self, descriptor: int, work: Path, bounds: Bounds, *, name: str) -> None:
        from pytest_sandbox.oci.layers.decompress import Unpacked
        from pytest_sandbox.oci.layers.members import FILE, LINK, SYMLINK
        from pytest_sandbox.oci.layers.reader import Reader

        self._name = name
        self._files: dict[str, Path] = {}
        self._links: dict[str, str] = {}
        source = Unpacked(descriptor, bounds, name=name)
        try:
            reader = Reader(source, bounds, name=name)
            while (member := reader.next()) is not None:
                if reader.count > _MOST_FILES:
                    msg = f"{name} has more than {_MOST_FILES} files: it is no image"
                    raise InvalidImage(msg)
                own = _normal(os.fsdecode(member.name))
                self._files.pop(own, None)
                self._links.pop(own, None)
                if member.kind == FILE:
                    self._files[own] = file = work / f"file-{secrets.token_hex(8)}"
                    with file.open("xb") as out:
                        reader.write_to(out.fileno())
                elif member.kind == SYMLINK:
                    below = posixpath.join(posixpath.dirname(own), os.fsdecode(member.link))
                    self._links[own] = _normal(below)
                elif member.kind == LINK:
                    self._links[own] = _normal(os.fsdecode(member.link))
        finally:
            source.close()

    def _find(self, name: str) -> Path | None:
        for _ in range(_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return self._files.get(name)

    def has(self, name: str) -> bool:
        """See Files."""
        return self._find(name) is not None

    def open(self, name: str) -> BinaryIO:
        """See Files."""
        found = self._find(name)
        if found is None:
            msg = f"{self._name} has no file {name[:200]!r}"
            raise InvalidImage(msg)
        return found.open("rb")


def _normal(name: str) -> str:
    """One spelling of a name in a tar; it is only ever a key."""
    return posixpath.normpath(name).lstrip("/")
