"""What a member of an untrusted archive may be called, point at and become."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\")
_NAME_MAX = 255


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much an archive may hold.

    `entries` counts members and the folders that they imply. `total` is bytes after decompression;
    once more than `ratio_from` bytes have come out, they may be at most `ratio` times the archive's
    size. `path` is bytes of a name or of a link's target, `depth` its components, `window` the
    memory in bytes that zstd and xz may ask for, `header` the bytes of one member's tar headers.
    """

    entries: int = 200_000
    total: int = 16 << 30
    ratio: int = 200
    ratio_from: int = 100 << 20
    path: int = 4096
    depth: int = 256
    window: int = 128 << 20
    header: int = 1 << 20


BOUNDS = Bounds()


class Refused(Exception):
    """Why an archive is not unpacked; callers turn it into an error that names the archive."""


class Kind(StrEnum):
    """What a path is."""

    FOLDER = "folder"
    FILE = "file"
    SYMLINK = "symlink"


def shown(name: str) -> str:
    """A member's name for an error text: quoted, and its middle left out where it is very long."""
    text = repr(name)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def split_name(name: str, bounds: Bounds = BOUNDS) -> tuple[str, ...]:
    """The components of a member's name; `.` and doubled slashes fall away (`./` has none). Raises
    Refused.
    """
    if not name:
        msg = "a member has an empty name"
        raise Refused(msg)
    _no_nul(name, f"member {shown(name)}")
    if name.startswith("/"):
        msg = f"member {shown(name)} has an absolute name"
        raise Refused(msg)
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        msg = f"member {shown(name)} climbs with '..'"
        raise Refused(msg)
    if _bytes(name) > bounds.path or len(parts) > bounds.depth:
        msg = (
            f"member {shown(name)} has a name of {_bytes(name)} bytes and {len(parts)} components;"
            f" at most {bounds.path} and {bounds.depth} are allowed"
        )
        raise Refused(msg)
    if any(_bytes(part) > _NAME_MAX for part in parts):
        msg = f"member {shown(name)} has a component of more than {_NAME_MAX} bytes"
        raise Refused(msg)
    return parts


def check_drive(name: str) -> None:
    """Refuse what is absolute on Windows (`C:\\x`, `\\\\server`); other backslashes are ordinary.
    Raises Refused.
    """
    if _DRIVE.match(name):
        msg = f"member {shown(name)} begins with a drive or a backslash"
        raise Refused(msg)


def check_symlink(parts: tuple[str, ...], target: str, bounds: Bounds = BOUNDS) -> None:
    """Hold a symlink to the tree that it lies in: its target, read as text, must not leave it.
    Raises Refused.
    """
    name = "/".join(parts)
    if not target or _bytes(target) > bounds.path:
        msg = f"symlink {shown(name)} has a target of {_bytes(target)} bytes"
        raise Refused(msg)
    _no_nul(target, f"the target of symlink {shown(name)}")
    if target.startswith("/"):
        msg = f"symlink {shown(name)} points to the absolute path {shown(target)}"
        raise Refused(msg)
    depth = len(parts) - 1
    for part in target.split("/"):
        if part in ("", "."):
            continue
        depth += -1 if part == ".." else 1
        if depth < 0:
            msg = f"symlink {shown(name)} points out of the archive to {shown(target)}"
            raise Refused(msg)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _no_nul(text: str, what: str) -> None:
    if "\0" in text:
        msg = f"{what} contains a NUL"
        raise Refused(msg)


_Node: TypeAlias = "dict[str, _Node] | Kind"


class Tree:
    """What the members so far have made, so that none is written through or over another kind of
    thing.
    """

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self._root: dict[str, _Node] = {}
        self._bounds = bounds
        self._nodes = 0

    def place(self, parts: tuple[str, ...], kind: Kind) -> bool:
        """Note a member (`parts` is not empty); True where the name is new. Raises Refused."""
        folder = self._root
        for depth, part in enumerate(parts[:-1], 1):
            node = folder.get(part)
            if node is None:
                self._count()
                node = folder[part] = {}
            elif isinstance(node, Kind):
                above = shown("/".join(parts[:depth]))
                msg = f"member {shown('/'.join(parts))} lies below {above}, which is a {node}"
                raise Refused(msg)
            folder = node
        before = folder.get(parts[-1])
        if before is None:
            self._count()
            folder[parts[-1]] = {} if kind is Kind.FOLDER else kind
            return True
        was = before if isinstance(before, Kind) else Kind.FOLDER
        if was is not kind:
            msg = f"member {shown('/'.join(parts))} is a {was} first and a {kind} later"
            raise Refused(msg)
        return False

    def kind(self, parts: tuple[str, ...]) -> Kind | None:
        """What was placed at `parts`, a folder that another member implied included."""
        node: _Node = self._root
        for part in parts:
            if isinstance(node, Kind) or part not in node:
                return None
            node = node[part]
        return node if isinstance(node, Kind) else Kind.FOLDER

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > self._bounds.entries:
            msg = f"it holds more than {self._bounds.entries} files and folders"
            raise Refused(msg)
