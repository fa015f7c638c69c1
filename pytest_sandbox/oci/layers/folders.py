"""The folders of a tree, held open: the way to every file without a path that could be bent.

A path is walked name by name, each opened below the folder before it and never through a symbolic
link. A link is read and its text walked instead, from the tree's root where it is absolute; `..`
stops at the root. So nothing leaves the tree, whatever its links say.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.layers import xattrs

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_LINKS: Final = 255
"""So many links in one path are followed (umoci and filepath-securejoin stop there too)."""
_HELD: Final = 128
_ALIASES: Final = 1000
_NO_FOLDER: Final = frozenset({errno.ENOTDIR, errno.ELOOP})


class Folder:
    """An open folder.

    `path` has no leading slash and no links in it; the root's is empty. `atime` and `mtime` (ns)
    are what it gets back when it is closed, if `touched`. In a `plain` one new files belong to who
    makes them, and inherit nothing. `marked` is its user's.
    """

    __slots__ = ("atime", "descriptor", "marked", "mtime", "path", "pins", "plain", "touched")

    def __init__(self, descriptor: int, path: bytes) -> None:
        self.descriptor = descriptor
        self.path = path
        self.pins = 0
        self.touched = False
        self.marked = False
        status = os.fstat(descriptor)
        self.atime = status.st_atime_ns
        self.mtime = status.st_mtime_ns
        self.plain = status.st_gid == os.getegid() and not inherits(descriptor)

    def below(self, name: bytes) -> bytes:
        """The path of a name in this folder."""
        return self.path + b"/" + name if self.path else name


def inherits(descriptor: int) -> bool:
    """Whether what is made in a folder inherits access control lists."""
    try:
        return xattrs.DEFAULT_ACL in os.listxattr(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False


class Folders:
    """The open folders of one tree; those that were not used for long are closed.

    `root` stays the caller's. `made(folder)` is called for each folder that a walk had to make;
    `most` is the longest path (bytes) that is walked to.
    """

    def __init__(self, root: int, *, most: int = 4096) -> None:
        self.made: Callable[[Folder], None] = lambda _: None
        self._most = most
        self._held: OrderedDict[bytes, Folder] = OrderedDict()
        self._aliases: dict[bytes, bytes] = {}
        self._base = Folder(os.dup(root), b"")
        self._base.pins = 1
        self._held[b""] = self._base

    @property
    def root(self) -> Folder:
        """The tree's root."""
        return self._base

    def walk(self, path: bytes, *, make: bool) -> Folder | None:
        """The folder at a path without `.`, `..` and empty names.

        Missing ones are made (0755, ours) with `make`; without it the answer is None, also where
        a file stands in the way. Raises NotADirectoryError and OSError (ELOOP, ENAMETOOLONG).
        """
        held = self._held
        found = held.get(path)
        if found is None and self._aliases:
            found = held.get(self._aliases.get(path, path))
        if found is not None:
            held.move_to_end(found.path)
            return found
        found, missing = self.locate(path)
        if missing and not make:
            return None
        for name in missing:
            try:
                found = self.make(found, name)
            except FileExistsError:
                what = "not a folder"
                raise NotADirectoryError(errno.ENOTDIR, what, found.below(name)) from None
            self.made(found)
        if found.path != path:
            if len(self._aliases) > _ALIASES:
                self._aliases.clear()
            self._aliases[path] = found.path
        return found

    def locate(self, path: bytes) -> tuple[Folder, list[bytes]]:
        """The last folder that is there on the way to a path, and the names that are missing.

        A missing name, or a file's, stays where it is until `..` in a link's text takes it back.
        """
        start, _, rest = path.rpartition(b"/")
        todo = [rest]
        while start and start not in self._held:
            start, _, rest = start.rpartition(b"/")
            todo.append(rest)
        folder = self._held[start]
        missing: list[bytes] = []
        links = 0
        while todo:
            name = todo.pop()
            if name in {b"", b"."}:
                continue
            if missing:
                if name == b"..":
                    missing.pop()
                else:
                    missing.append(name)
                continue
            if name == b"..":
                folder = self._literal(folder.path.rpartition(b"/")[0])
                continue
            there = self._step(folder, name)
            if there is None:
                missing.append(name)
            elif isinstance(there, Folder):
                folder = there
            else:
                links += 1
                if links > MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                if there.startswith(b"/"):
                    folder = self._base
                todo += reversed(there.split(b"/"))
        return folder, missing

    def _step(self, folder: Folder, name: bytes) -> Folder | bytes | None:
        """What a name is: a folder, a link's text, or nothing that leads on."""
        known = self._held.get(folder.below(name))
        if known is not None:
            self._held.move_to_end(known.path)
            return known
        try:
            return self.enter(folder, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
        return _link_text(folder, name)

    def _literal(self, path: bytes) -> Folder:
        """The folder at a path that has no links in it."""
        known = self._held.get(path)
        if known is not None:
            self._held.move_to_end(path)
            return known
        folder = self._base
        for name in path.split(b"/"):
            folder = self._held.get(folder.below(name)) or self.enter(folder, name)
        return folder

    def walk_plain(self, path: bytes) -> Folder | None:
        """The folder at a path where no link leads; None where there is none, or a link or file."""
        try:
            return self._literal(path)
        except OSError as error:
            if error.errno in {errno.ENOENT, *_NO_FOLDER}:
                return None
            raise

    def enter(self, folder: Folder, name: bytes) -> Folder:
        """Open a folder that is in another one, no link."""
        path = folder.below(name)
        if len(path) > self._most:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        descriptor = os.open(name, OPEN_FOLDER, dir_fd=folder.descriptor)
        return self._hold(Folder(descriptor, path))

    def make(self, folder: Folder, name: bytes, mode: int = 0o755) -> Folder:
        """Make a folder that is not there yet, ours and with nothing inherited, and open it."""
        path = folder.below(name)
        if len(path) > self._most:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        os.mkdir(name, mode, dir_fd=folder.descriptor)
        folder.touched = True
        made = Folder(os.open(name, OPEN_FOLDER, dir_fd=folder.descriptor), path)
        if not folder.plain:
            os.fchown(made.descriptor, os.geteuid(), os.getegid())
            xattrs.clear(made.descriptor, {})
            made.plain = True
        os.fchmod(made.descriptor, mode)
        return self._hold(made)

    def _hold(self, folder: Folder) -> Folder:
        held = self._held
        held[folder.path] = folder
        if len(held) > _HELD:
            for candidate in held.values():
                if not candidate.pins and candidate is not folder:
                    del held[candidate.path]
                    _close(candidate)
                    break
        return folder

    def held(self, path: bytes) -> Folder | None:
        """The folder at a path without links, if it is open."""
        return self._held.get(path)

    def forget(self, path: bytes) -> None:
        """What was at a path is gone: close what is open at and below it."""
        self._aliases.clear()
        below = path + b"/"
        for gone in [p for p in self._held if p == path or p.startswith(below)]:
            os.close(self._held.pop(gone).descriptor)

    def relink(self) -> None:
        """A link came or went: paths that led through links may lead elsewhere now."""
        self._aliases.clear()

    def close(self) -> None:
        """Give all folders their times and close them."""
        while self._held:
            _close(self._held.popitem()[1])


def _close(folder: Folder) -> None:
    try:
        if folder.touched:
            os.utime(folder.descriptor, ns=(folder.atime, folder.mtime))
    finally:
        os.close(folder.descriptor)


def _link_text(folder: Folder, name: bytes) -> bytes | None:
    """A link's text; None for what is neither folder nor link."""
    try:
        return os.readlink(name, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return None
