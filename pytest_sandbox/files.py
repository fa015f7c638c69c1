"""Files in and out of a running system, as `cp -a`, `cat` and a redirection would move them."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final, cast

from pytest_sandbox.archives import pack, unpack_to_host
from pytest_sandbox.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.runtimes.base import System

_LINKS: Final = 40
"""As many symlinks as the kernel follows."""
_MOUNTED: Final = (
    "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
)  # fmt: skip
"""An engine's archive interface works below mounts: what lies here it does not see."""


def copy_in(system: System, source: Path, target: str) -> None:
    """`cp -a SOURCE TARGET` from the host; the copies belong to root.

    Raises FileNotFoundError, IsADirectoryError and NotADirectoryError where cp refuses, and
    PermissionError for a target in a mount.
    """
    if not source.exists() and not source.is_symlink():
        raise FileNotFoundError(errno.ENOENT, "no such file to copy in", str(source))
    folder = source.is_dir() and not source.is_symlink()
    place = resolve(system, target)
    found = system.stat(place)
    if found is not None and stat.S_ISDIR(found.mode):
        place = str(PurePosixPath(place) / (source.name or source.resolve().name))
        found = system.stat(place)
    elif target.endswith("/") and not (folder and found is None):
        raise NotADirectoryError(errno.ENOTDIR, "is no folder in the sandbox", target)
    if found is not None and stat.S_ISDIR(found.mode) and not folder:
        raise IsADirectoryError(errno.EISDIR, "is a folder in the sandbox", place)
    if found is not None and folder and not stat.S_ISDIR(found.mode):
        raise NotADirectoryError(errno.ENOTDIR, "is no folder in the sandbox", place)
    _not_mounted(system, place)
    parent = PurePosixPath(place).parent
    _must_be_folder(system, str(parent))
    with tempfile.TemporaryFile(prefix="pytest-sandbox-") as tar:
        pack(source, PurePosixPath(place).name, tar)
        tar.seek(0)
        system.put(tar, str(parent))


def copy_out(system: System, source: str, target: Path) -> None:
    """`cp -a SOURCE TARGET` to the host; raises FileNotFoundError, PermissionError for a mount."""
    _not_mounted(system, source)
    found, chunks = system.get(source)
    unpack_to_host(stream_of(chunks), target, found.name)


def read(system: System, path: str) -> bytes:
    """The bytes of a file; symlinks are followed. Raises FileNotFoundError, IsADirectoryError."""
    place = resolve(system, path)
    if mount_of(system, place):
        return _cat(system, place)
    _, chunks = system.get(place)
    with tarfile.open(fileobj=stream_of(chunks), mode="r|") as tar:
        member = tar.next()
        if member is None or member.isdir():
            raise IsADirectoryError(errno.EISDIR, "is a folder in the sandbox", path)
        source = tar.extractfile(member)
        if source is None:
            raise OSError(errno.EINVAL, "is no regular file in the sandbox", path)
        return source.read()


def _cat(system: System, place: str) -> bytes:
    result = system.run(["cat", "--", place])
    if result.returncode:
        said = result.stderr.strip() or f"exit {result.returncode}"
        number = errno.EISDIR if "directory" in said and "No such" not in said else errno.ENOENT
        raise OSError(number, said, place)
    if result.truncated:
        raise OSError(errno.EFBIG, "is too large to be read out of a mount", place)
    return result.stdout_bytes


def write(system: System, path: str, data: bytes, mode: int) -> None:
    """Write a file of root's; a symlink is written through. Raises FileNotFoundError for a missing
    folder, IsADirectoryError for a folder of that name."""
    place = resolve(system, path)
    parent = PurePosixPath(place).parent
    if mount_of(system, place):
        script = 'umask 077; cat > "$1" && chmod "$2" "$1"'
        if place in _MOUNTED:
            script = 'cat > "$1"'  # the engine's own file: its mode is not ours
        done = system.run(["/bin/sh", "-c", script, "sh", place, f"{mode:o}"], input=data)
        if done.returncode:
            raise PermissionError(errno.EACCES, done.stderr.strip() or "cannot be written", place)
        return
    found = system.stat(place)
    if found is not None and stat.S_ISDIR(found.mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder in the sandbox", path)
    _must_be_folder(system, str(parent))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(PurePosixPath(place).name)
        member.size, member.mode, member.mtime = len(data), mode, int(time.time())
        tar.addfile(member, io.BytesIO(data))
    packed.seek(0)
    system.put(packed, str(parent))


def resolve(system: System, path: str) -> str:
    """The absolute path with the symlinks in its last part followed. Raises OSError (ELOOP)."""
    place = os.path.normpath(PurePosixPath(system.spec.cwd or "/") / path)
    for _ in range(_LINKS):
        try:
            found = None if mount_of(system, place) else system.stat(place)
        except RuntimeUnavailable:
            # An engine that is well cannot look at a link to itself.
            if system.run(["test", "-L", place]).returncode:
                raise
            break
        if found is None or not stat.S_ISLNK(found.mode):
            return place
        place = os.path.normpath(PurePosixPath(place).parent / found.link)
    raise OSError(errno.ELOOP, "too many symlinks in the sandbox", path)


def mount_of(system: System, place: str) -> str:
    """The mount that `place` lies in, or empty; only the sandbox's own processes see into it."""
    spec = system.spec
    for point in (*_MOUNTED, *spec.tmpfs, *(mount.target for mount in spec.mounts)):
        if PurePosixPath(place).is_relative_to(point):
            return point
    return ""


def _not_mounted(system: System, place: str) -> None:
    if point := mount_of(system, place):
        text = f"lies in the mount {point}; copy to another folder and move it with a command"
        raise PermissionError(errno.EACCES, text, place)


def _must_be_folder(system: System, path: str) -> None:
    found = system.stat(resolve(system, path))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such folder in the sandbox", path)
    if not stat.S_ISDIR(found.mode):
        raise NotADirectoryError(errno.ENOTDIR, "is no folder in the sandbox", path)


class _Stream(io.RawIOBase):
    """An iterable of bytes as a file to read; tarfile's stream mode needs no more."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._chunks, None)
            if block is None:
                return 0
            self._rest = block
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def stream_of(chunks: Iterable[bytes]) -> IO[bytes]:
    """An iterable of bytes as a file to read."""
    return cast("IO[bytes]", io.BufferedReader(_Stream(chunks)))
