"""Applies a layer to a tree (image-spec, layer.md): the one algorithm for all snapshotters.

The tree is an empty folder (the first layer), an overlay mount of the layers below with a new
upper folder (the kernel then writes whiteouts, opaque folders and copies), or a plain copy.

What the layer brings replaces what is there, but for folders over folders, and is never written
through what is there. Owner before mode before attributes before times, since each may undo the
next. A folder's time is set when it is left; one that the layer does not list gets back its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_sandbox.errors import Blame, Phase, SandboxError
from pytest_sandbox.oci.layers import members, xattrs
from pytest_sandbox.oci.layers.folders import Folder, Folders
from pytest_sandbox.oci.layers.removal import remove_tree

if TYPE_CHECKING:
    from pytest_sandbox.oci.bounds import Bounds
    from pytest_sandbox.oci.layers.members import Member
    from pytest_sandbox.oci.layers.reader import Reader

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LAYERS: Final = frozenset(
    {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.EILSEQ, errno.EMLINK}
)
"""The layer's own fault; everything else is the host's."""
_SHORT: Final = 64


class Ids(NamedTuple):
    """The ids that files may have: those below."""

    uids: int
    gids: int


class Applied(NamedTuple):
    """What was applied: `entries` (also the folders made on the way), `devices` that became empty
    placeholders, `xattrs` that could not be set and the first of them (`member: name`).
    """

    entries: int
    devices: int
    xattrs: int
    first_xattr: str


class Refused(Exception):
    """A rule that the present member breaks."""


class Applier:
    """Applies the members of one archive to the tree of an open folder.

    `whiteouts` off: names that begin with `.wh.` are names like all others. `prefix` is the folder
    below which the archive's own root lies. `fresh`: the tree is empty, and nothing lies below.
    """

    def __init__(
        self,
        root: int,
        reader: Reader,
        bounds: Bounds,
        *,
        ids: Ids,
        whiteouts: bool = True,
        fresh: bool = False,
        prefix: bytes = b"",
    ) -> None:
        self.folders = Folders(root, most=bounds.path)
        self.folders.made = self._made
        self._reader = reader
        self._bounds = bounds
        self._ids = ids
        self._whiteouts = whiteouts
        self._prefix = prefix
        self._ours: set[bytes] | None = set() if whiteouts and not fresh else None
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._member = members.Member(b"", members.FILE)
        self._made_count = 0
        self._devices = 0
        self._xattrs = 0
        self._first_xattr = ""

    def apply(self) -> Applied:
        """Apply all members. Raises InvalidImage, and SandboxError where the host fails."""
        mask = os.umask(0)
        try:
            self._apply_all()
            self.folders.close()
        except OSError as error:
            raise self._explain(error) from error
        finally:
            os.umask(mask)
            with contextlib.suppress(OSError):
                self.folders.close()
        entries = self._reader.count + self._made_count
        return Applied(entries, self._devices, self._xattrs, self._first_xattr)

    def _apply_all(self) -> None:
        reader, most = self._reader, self._bounds.entries
        while (member := reader.next()) is not None:
            self._member = member
            if reader.count + self._made_count > most:
                msg = f"the layer has more than {most} entries"
                raise reader.refuse(msg)
            try:
                self._entry(member)
            except Refused as broken:
                raise reader.refuse(str(broken)) from None

    def _explain(self, error: OSError) -> SandboxError:
        text = error.strerror or str(error)
        if error.errno not in _LAYERS:
            where = f"{self._reader.name}: {os.fsdecode(self._member.name)!r}"
            return SandboxError(
                f"{where}: {text}",
                phase=Phase.IMAGE,
                blame=Blame.HOST,
                next_step="give the data folder's file system what it lacks, and try again",
            )
        if error.filename is not None and not isinstance(error.filename, int):
            text = f"{text} ({os.fsdecode(error.filename)!r})"
        return self._reader.refuse(text)

    # -- members ---------------------------------------------------------------------------------

    def _entry(self, member: Member) -> None:
        name = self.clean(member.name, "its name")
        if not name:
            if not member.name:
                msg = "its name is empty"
                raise Refused(msg)
            self._root(member)
            return
        parent, _, base = (self._prefix + name).rpartition(b"/")
        if self._whiteouts and b".wh." in name:
            if parent.startswith(WHITEOUT) or b"/.wh." in parent:
                msg = "a folder's name begins with .wh."
                raise Refused(msg)
            if base.startswith(WHITEOUT):
                self._whiteout(parent, base)
                return
        self._check_ids(member)
        folder = self.folders.walk(parent, make=True)
        assert folder is not None
        if self._ours is not None:
            self._mark(folder, base)
        kind = member.kind
        if kind == members.FILE:
            self._file(member, folder, base)
        elif kind == members.FOLDER:
            self._folder(member, folder, base)
        elif kind == members.SYMLINK:
            self._symlink(member, folder, base)
        elif kind == members.LINK:
            self._link(member, folder, base)
        elif kind == members.FIFO:
            self._fifo(member, folder, base)
        else:
            self._devices += 1
            member.size = member.stored = 0
            self._file(member, folder, base)

    def clean(self, name: bytes, what: str) -> bytes:
        """A name without `.`, empty parts and slashes around it. Raises Refused."""
        if b"\0" in name:
            msg = f"{what} has a NUL byte"
            raise Refused(msg)
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if b".." in parts:
            msg = f"{what} {os.fsdecode(name)!r} has '..' in it"
            raise Refused(msg)
        if len(name) > self._bounds.path:
            msg = f"{what} is longer than {self._bounds.path} bytes"
            raise Refused(msg)
        return b"/".join(parts)

    def _check_ids(self, member: Member) -> None:
        if member.kind == members.LINK:
            return  # it has no owner of its own
        if not 0 <= member.uid < self._ids.uids:
            msg = f"its uid {member.uid} is outside of the ids 0-{self._ids.uids - 1}"
            raise Refused(msg)
        if not 0 <= member.gid < self._ids.gids:
            msg = f"its gid {member.gid} is outside of the ids 0-{self._ids.gids - 1}"
            raise Refused(msg)

    def _root(self, member: Member) -> None:
        if member.kind != members.FOLDER:
            msg = "the root must stay a folder"
            raise Refused(msg)
        self._check_ids(member)
        folder = self.folders.walk(self._prefix.rstrip(b"/"), make=True)
        assert folder is not None
        self._dress(member, folder, new=False)

    def _file(self, member: Member, folder: Folder, base: bytes) -> None:
        mode = member.mode
        descriptor = self._create(folder, base, mode & 0o777)
        try:
            folder.touched = True
            if member.stored or member.segments is not None:
                self._reader.write_to(descriptor)
            owned = member.uid != self._uid or member.gid != self._gid
            if owned or not folder.plain:
                os.fchown(descriptor, member.uid, member.gid)
                if not folder.plain:
                    xattrs.clear(descriptor, {})
                os.fchmod(descriptor, mode)
            elif mode > 0o777:
                os.fchmod(descriptor, mode)
            if member.xattrs:
                self._set_xattrs(member, descriptor)
            os.utime(descriptor, ns=(member.atime, member.mtime))
        finally:
            os.close(descriptor)

    def _create(self, folder: Folder, base: bytes, mode: int) -> int:
        try:
            return os.open(base, _NEW_FILE, mode, dir_fd=folder.descriptor)
        except FileExistsError:
            self._remove(folder, base)
            return os.open(base, _NEW_FILE, mode, dir_fd=folder.descriptor)

    def _folder(self, member: Member, folder: Folder, base: bytes) -> None:
        path = folder.below(base)
        found = self.folders.held(path)
        if found is not None:
            self._dress(member, found, new=False)
            return
        try:
            made = self.folders.make(folder, base, member.mode & 0o777)
        except FileExistsError:
            try:
                found = self.folders.enter(folder, base)
            except OSError as error:
                if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                    raise
                self._remove(folder, base)
                made = self.folders.make(folder, base, member.mode & 0o777)
            else:
                self._dress(member, found, new=False)
                return
        self._begin(made)
        self._dress(member, made, new=True)

    def _begin(self, folder: Folder) -> None:
        """A listed folder was made."""

    def _dress(self, member: Member, folder: Folder, *, new: bool) -> None:
        """Give a folder what the layer says of it."""
        descriptor = folder.descriptor
        owned = member.uid != self._uid or member.gid != self._gid
        if not new:
            xattrs.clear(descriptor, member.xattrs)
        if owned or not new:
            os.fchown(descriptor, member.uid, member.gid)
        if owned or not new or member.mode > 0o777:
            os.fchmod(descriptor, member.mode)
        if member.xattrs:
            self._set_xattrs(member, descriptor)
        inherited = xattrs.DEFAULT_ACL in member.xattrs
        folder.plain = member.gid == self._gid and not inherited
        folder.atime, folder.mtime = member.atime, member.mtime
        folder.touched = True

    def _symlink(self, member: Member, folder: Folder, base: bytes) -> None:
        if not member.link or b"\0" in member.link:
            msg = "its target is empty or has a NUL byte"
            raise Refused(msg)
        try:
            os.symlink(member.link, base, dir_fd=folder.descriptor)
        except FileExistsError:
            self._remove(folder, base)
            os.symlink(member.link, base, dir_fd=folder.descriptor)
        self.folders.relink()
        self._finish(member, folder, base)

    def _fifo(self, member: Member, folder: Folder, base: bytes) -> None:
        try:
            os.mkfifo(base, member.mode & 0o777, dir_fd=folder.descriptor)
        except FileExistsError:
            self._remove(folder, base)
            os.mkfifo(base, member.mode & 0o777, dir_fd=folder.descriptor)
        self._finish(member, folder, base)

    def _finish(self, member: Member, folder: Folder, base: bytes) -> None:
        """Owner, attributes and times of what cannot be opened."""
        descriptor = folder.descriptor
        folder.touched = True
        if not folder.plain or member.uid != self._uid or member.gid != self._gid:
            os.chown(base, member.uid, member.gid, dir_fd=descriptor, follow_symlinks=False)
        if member.kind == members.FIFO:
            os.chmod(base, member.mode, dir_fd=descriptor)
        if member.xattrs:
            self._set_xattrs(member, b"/proc/self/fd/%d/%s" % (descriptor, base))
        times = (member.atime, member.mtime)
        os.utime(base, ns=times, dir_fd=descriptor, follow_symlinks=False)

    def _link(self, member: Member, folder: Folder, base: bytes) -> None:
        target = self.clean(member.link, "its target")
        parent, _, name = (self._prefix + target).rpartition(b"/")
        source = self._source(parent, folder)
        if not target or source is None:
            raise self._no_target(member)
        if source is folder and name == base:
            self._exists(folder, base, member)  # the same file twice, as tar writes it
            return
        try:
            try:
                self._hard_link(source, name, folder, base)
            except FileExistsError:
                self._remove(folder, base)
                source = self._source(parent, folder)  # it may have gone with that
                if source is None:
                    raise self._no_target(member) from None
                self._hard_link(source, name, folder, base)
        except FileNotFoundError:
            raise self._no_target(member) from None
        except PermissionError:
            msg = f"it is a hard link to {os.fsdecode(member.link)!r}, which is no file"
            raise Refused(msg) from None
        folder.touched = True

    def _source(self, parent: bytes, folder: Folder) -> Folder | None:
        """The folder that a hard link's target is in, with that of the link kept open."""
        folder.pins += 1
        try:
            return self.folders.walk(parent, make=False)
        finally:
            folder.pins -= 1

    @staticmethod
    def _hard_link(source: Folder, name: bytes, folder: Folder, base: bytes) -> None:
        os.link(
            name,
            base,
            src_dir_fd=source.descriptor,
            dst_dir_fd=folder.descriptor,
            follow_symlinks=False,
        )

    def _exists(self, folder: Folder, base: bytes, member: Member) -> None:
        try:
            os.stat(base, dir_fd=folder.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            raise self._no_target(member) from None

    def _no_target(self, member: Member) -> Exception:
        return Refused(f"it is a hard link to {os.fsdecode(member.link)!r}, which does not exist")

    def _set_xattrs(self, member: Member, target: int | bytes) -> None:
        try:
            failed = xattrs.write(target, member.xattrs)
        except OSError as error:
            msg = f"its extended attributes cannot be set: {error.strerror}"
            raise Refused(msg) from None
        if failed:
            self._xattrs += 1
            self._first_xattr = self._first_xattr or f"{os.fsdecode(member.name)}: {failed}"

    # -- what is there already -------------------------------------------------------------------

    def _remove(self, folder: Folder, base: bytes) -> None:
        """Remove what is in the way of a member, or whited out."""
        remove_tree(folder.descriptor, base)
        folder.touched = True
        self.folders.forget(folder.below(base))

    def _made(self, folder: Folder) -> None:
        """A folder that the layer did not list had to be made."""
        self._made_count += 1
        if self._reader.count + self._made_count > self._bounds.entries:
            msg = f"the layer has more than {self._bounds.entries} entries"
            raise Refused(msg)
        folder.atime = folder.mtime = self._member.mtime
        folder.touched = True

    def _mark(self, folder: Folder, base: bytes) -> None:
        """Note that a path, and the folders above it, are this layer's."""
        ours = self._ours
        if ours is None:
            return
        ours.add(_key(folder.below(base)))
        if not folder.marked:
            folder.marked = True
            path = folder.path
            while path:
                ours.add(_key(path))
                path = path.rpartition(b"/")[0]

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        name = self._whiteout_name(base)
        if self._ours is None:
            return  # nothing lies below
        folder = self.folders.walk(parent, make=False)
        if folder is None:
            return
        if base == OPAQUE:
            self._hide([folder.path])
        elif _key(path := folder.below(name)) in self._ours:
            self._hide([path])
        else:
            with contextlib.suppress(FileNotFoundError):
                self._remove(folder, name)

    @staticmethod
    def _whiteout_name(base: bytes) -> bytes:
        """What a whiteout removes. Raises Refused."""
        name = base[len(WHITEOUT) :]
        if base != OPAQUE and name in {b"", b".", b".."}:
            msg = "a whiteout names no file"
            raise Refused(msg)
        return name

    def _hide(self, todo: list[bytes]) -> None:
        """Remove what is in these folders, but for what this layer brought."""
        ours = self._ours or set()
        while todo:
            folder = self.folders.walk_plain(todo.pop())
            if folder is None:
                continue
            for name in map(os.fsencode, os.listdir(folder.descriptor)):  # noqa: PTH208 - a descriptor
                path = folder.below(name)
                if _key(path) in ours:
                    todo.append(path)
                else:
                    self._remove(folder, name)


def _key(path: bytes) -> bytes:
    """A path, or what stands for a long one: two million of them must fit into memory."""
    return path if len(path) <= _SHORT else blake2b(path, digest_size=24).digest()
