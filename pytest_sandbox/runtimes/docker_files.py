"""Files of a container through the engine's archive interface, always as streams."""

from __future__ import annotations

import base64
import io
import json
import posixpath
import stat as st
import tarfile
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.runtimes.base import Changes, PathStat
from pytest_sandbox.runtimes.shell import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Go's os.FileMode bits -> st_mode bits.
_TYPES: Final = {
    1 << 31: st.S_IFDIR,
    1 << 27: st.S_IFLNK,
    1 << 25: st.S_IFIFO,
    1 << 24: st.S_IFSOCK,
    1 << 26: st.S_IFBLK,
    1 << 21: st.S_IFCHR,
}
_BITS: Final = {1 << 23: st.S_ISUID, 1 << 22: st.S_ISGID, 1 << 20: st.S_ISVTX}
_CHUNK: Final = 1 << 20
# What the engine itself puts into a fresh container.
_ENGINE_FILES: Final = (
    *("/dev", "/proc", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/.dockerenv"),
    *("/sbin/docker-init", "/usr/sbin/docker-init", "/dev/init", "/run/.containerenv", "/etc/mtab"),
    *("/run/podman-init", "/catatonit", "/run/secrets"),
)


def unix_mode(mode: int) -> int:
    """`st_mode` from Go's FileMode."""
    kind = next((value for bit, value in _TYPES.items() if mode & bit), st.S_IFREG)
    if mode & (1 << 26) and mode & (1 << 21):
        kind = st.S_IFCHR
    return kind | sum(value for bit, value in _BITS.items() if mode & bit) | (mode & 0o777)


def _path_stat(found: dict[str, Any]) -> PathStat:
    mode = unix_mode(int(found["mode"]))
    size = int(found["size"]) if st.S_ISREG(mode) else 0
    return PathStat(found["name"], size, mode, found.get("linkTarget", ""))


def stat(client: Any, container: str, path: str) -> PathStat | None:
    """What `path` is, or None."""
    url = client._url("/containers/{0}/archive", container)
    with client.head(url, params={"path": path}, timeout=client.timeout) as response:
        if response.status_code == 404:
            if "Libpod" in response.headers.get("Server", ""):  # Podman follows links
                return _broken_link(client, container, path)
            return None
        if response.status_code >= 400:
            msg = f"the engine cannot look at {path}: {response.status_code} {response.reason}"
            raise RuntimeUnavailable(msg)
        header = response.headers["X-Docker-Container-Path-Stat"]
    found = _path_stat(json.loads(base64.b64decode(header)))
    if not st.S_ISLNK(found.mode):
        return found
    # The header has the link resolved; the archive has it as it is.
    try:
        _, chunks = _archive(client, container, path)
        link = _first_link(chunks)
    except FileNotFoundError:
        link = ""  # it was followed, and leads nowhere
    link = link or _read_link(client, container, path) or found.link
    return PathStat(_last_name(path) or found.name, 0, found.mode, link)


def _last_name(path: str) -> str:
    return posixpath.basename(path.rstrip("/"))


def _broken_link(client: Any, container: str, path: str) -> PathStat | None:
    link = _read_link(client, container, path)
    return PathStat(_last_name(path), 0, st.S_IFLNK | 0o777, link) if link else None


def _read_link(client: Any, container: str, path: str) -> str:
    """Where the engine's archive follows links, as Podman's does: what readlink says inside."""
    import docker.errors

    try:
        made = client.exec_create(container, ["readlink", "-n", path], stderr=False, user="0")
        said: bytes = client.exec_start(made["Id"])
        if client.exec_inspect(made["Id"])["ExitCode"] != 0:
            return ""
    except docker.errors.APIError:  # an image without it
        return ""
    return said.decode("utf-8", "surrogateescape")


def _first_link(chunks: Iterator[bytes]) -> str:
    with tarfile.open(fileobj=_Reader(chunks), mode="r|") as tar:
        member = tar.next()
        return member.linkname if member is not None else ""


class _Reader(io.RawIOBase):
    """The chunks of a stream as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        size = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _archive(client: Any, container: str, path: str) -> tuple[PathStat, Iterator[bytes]]:
    import docker.errors

    try:
        chunks, found = client.get_archive(container, path, chunk_size=_CHUNK)
    except docker.errors.NotFound:
        msg = f"{path} does not exist in the sandbox"
        raise FileNotFoundError(msg) from None
    except docker.errors.APIError as exc:
        msg = f"the engine cannot read {path}: {exc.explanation or exc}"
        raise RuntimeUnavailable(msg) from exc
    return _path_stat(found), chunks


def get(client: Any, container: str, path: str) -> tuple[PathStat, Iterable[bytes]]:
    """A tar stream of `path`. Raises FileNotFoundError."""
    return _archive(client, container, path)


def put(client: Any, container: str, tar: IO[bytes], path: str) -> None:
    """Unpack a tar stream under the folder `path`. Raises FileNotFoundError, NotADirectoryError."""
    import docker.errors

    found = stat(client, container, path)
    if found is None:  # not every engine tells
        msg = f"{path} does not exist in the sandbox"
        raise FileNotFoundError(msg)
    if not st.S_ISDIR(found.mode) and not st.S_ISLNK(found.mode):
        msg = f"{path} is no directory in the sandbox"
        raise NotADirectoryError(msg)
    try:
        client.put_archive(container, path, iter(lambda: tar.read(_CHUNK), b""))
    except docker.errors.NotFound:
        msg = f"{path} does not exist in the sandbox"
        raise FileNotFoundError(msg) from None
    except docker.errors.APIError as exc:
        text = str(exc.explanation or exc)
        if "not a directory" in text:
            msg = f"{path} is no directory in the sandbox"
            raise NotADirectoryError(msg) from None
        msg = f"the engine cannot write under {path}: {text}"
        raise RuntimeUnavailable(msg) from exc


def changes(client: Any, container: str, mounted: Iterable[str]) -> Changes:
    """What differs from the image, without what the engine and this package put there."""
    listed = {item["Path"]: int(item["Kind"]) for item in client.diff(container) or ()}
    return select_changes(listed, mounted)


def select_changes(listed: dict[str, int], mounted: Iterable[str]) -> Changes:
    """The Changes of an engine's list (path -> 0 changed, 1 added, 2 removed).

    A changed folder with something listed below it is there because of that, or, where an engine
    leaves its own files out of the list, because of them. A folder that was
    added above a mount point is the engine's work.
    """
    parents = {parent for path in listed for parent in _parents(path)}
    ours = [posixpath.normpath(path) for path in (*_ENGINE_FILES, FOLDER, *mounted)]
    made = {parent for path in ours for parent in _parents(path)}
    kinds: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for path, kind in listed.items():
        if any(path == own or path.startswith(own + "/") for own in ours):
            continue
        if kind == 0 and (path in parents or path in made):
            continue
        if kind == 1 and path in made and not _holds_more(path, listed, ours, made):
            continue
        kinds[kind].append(path)
    return Changes(*(tuple(sorted(kinds[kind])) for kind in (1, 0, 2)))


def _holds_more(path: str, listed: dict[str, int], ours: list[str], made: set[str]) -> bool:
    """Whether something below `path` is neither ours nor on the way to ours."""
    return any(
        other.startswith(path + "/")
        and other not in made
        and not any(other == own or other.startswith(own + "/") for own in ours)
        for other in listed
    )


def _parents(path: str) -> list[str]:
    found = []
    while (path := posixpath.dirname(path)) not in {"", "/"}:
        found.append(path)
    return found
