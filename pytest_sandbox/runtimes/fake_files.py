"""A file system in memory, enough for tar streams in and out."""

from __future__ import annotations

import io
import posixpath
import stat as st
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from pytest_sandbox.runtimes.base import Changes, PathStat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Node:
    """One file, folder or symlink; `mode` is `st_mode`."""

    mode: int
    data: bytes = b""
    link: str = ""


FOLDER = Node(st.S_IFDIR | 0o755)
_USUAL = ("bin", "etc", "home", "opt", "root", "tmp", "usr", "usr/bin", "usr/local/bin", "var")


class Files:
    """Path -> Node, with the folders that every Linux system has."""

    def __init__(self, files: Mapping[str, str | bytes] | None = None) -> None:
        self.nodes: dict[str, Node] = {"/": FOLDER}
        for name in _USUAL:
            self.make_folders("/" + name)
        for path, content in (files or {}).items():
            self.write(path, content)

    def copy(self) -> Files:
        """An independent copy; the nodes themselves never change."""
        other = Files()
        other.nodes = dict(self.nodes)
        return other

    def make_folders(self, path: str) -> None:
        """`mkdir -p`."""
        path = posixpath.normpath(path)
        while path not in self.nodes:
            self.nodes[path] = FOLDER
            path = posixpath.dirname(path)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file, its folders too."""
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        path = posixpath.normpath(posixpath.join("/", path))
        self.make_folders(posixpath.dirname(path))
        self.nodes[path] = Node(st.S_IFREG | mode, data)

    def find(self, path: str) -> str | None:
        """The place of `path`, with symlinks in its folders (not at its end) followed."""
        done = "/"
        for part in posixpath.normpath(posixpath.join("/", path)).split("/")[1:]:
            for _ in range(40):
                node = self.nodes.get(done)
                if node is None or not node.link:
                    break
                done = posixpath.normpath(posixpath.join(posixpath.dirname(done), node.link))
            done = posixpath.join(done, part) if part else done
        return done if done in self.nodes else None

    def stat(self, path: str) -> PathStat | None:
        """What `path` is, or None."""
        place = self.find(path)
        if place is None:
            return None
        node = self.nodes[place]
        return PathStat(posixpath.basename(place) or "/", len(node.data), node.mode, node.link)

    def is_folder(self, path: str) -> bool:
        """Whether `path` is a folder, or a link to one."""
        for _ in range(40):
            place = self.find(path)
            if place is None:
                return False
            node = self.nodes[place]
            if not node.link:
                return st.S_ISDIR(node.mode)
            path = posixpath.join(posixpath.dirname(place), node.link)
        return False

    def put(self, tar: IO[bytes], path: str) -> None:
        """Unpack under a folder. Raises FileNotFoundError, NotADirectoryError."""
        if self.find(path) is None:
            msg = f"{path} does not exist in the sandbox"
            raise FileNotFoundError(msg)
        if not self.is_folder(path):
            msg = f"{path} is no directory in the sandbox"
            raise NotADirectoryError(msg)
        with tarfile.open(fileobj=tar, mode="r|*") as source:
            for member in source:
                where = posixpath.normpath(posixpath.join("/", path, member.name))
                self.make_folders(posixpath.dirname(where))
                if member.isdir():
                    self.nodes[where] = Node(st.S_IFDIR | member.mode)
                elif member.issym():
                    self.nodes[where] = Node(st.S_IFLNK | 0o777, link=member.linkname)
                elif member.isfile():
                    content = source.extractfile(member)
                    data = content.read() if content is not None else b""
                    self.nodes[where] = Node(st.S_IFREG | member.mode, data)

    def get(self, path: str) -> tuple[PathStat, Iterator[bytes]]:
        """A tar stream of `path`. Raises FileNotFoundError."""
        place, found = self.find(path), self.stat(path)
        if place is None or found is None:
            msg = f"{path} does not exist in the sandbox"
            raise FileNotFoundError(msg)
        below = [
            p for p in sorted(self.nodes) if p == place or p.startswith(place.rstrip("/") + "/")
        ]
        return found, iter([self._pack(place, below)])

    def _pack(self, place: str, paths: Iterable[str]) -> bytes:
        out = io.BytesIO()
        top = posixpath.dirname(place)
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in paths:
                node = self.nodes[path]
                member = tarfile.TarInfo(posixpath.relpath(path, top))
                member.mode, member.size = st.S_IMODE(node.mode), len(node.data)
                if st.S_ISDIR(node.mode):
                    member.type = tarfile.DIRTYPE
                elif node.link:
                    member.type, member.linkname = tarfile.SYMTYPE, node.link
                tar.addfile(member, io.BytesIO(node.data))
        return out.getvalue()

    def changes(self, base: Files) -> Changes:
        """What differs from `base`."""
        old, new = base.nodes, self.nodes
        return Changes(
            added=tuple(sorted(new.keys() - old.keys())),
            changed=tuple(sorted(p for p in new.keys() & old.keys() if new[p] != old[p])),
            removed=tuple(sorted(old.keys() - new.keys())),
        )
