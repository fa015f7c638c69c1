"""Users of a root file system: the six forms of User, from the root's own passwd and group.

The files belong to a stranger's image. They are opened confined to the root (openat2
RESOLVE_IN_ROOT), only where they are regular files, and read to a bound: a link out of the root, a
FIFO or an endless file neither leaks nor blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, Final, NamedTuple

from pytest_sandbox.errors import InvalidImage, UnknownUser
from pytest_sandbox.oci.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

CONFINED: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
FILE_LIMIT: Final = 8 << 20
"""passwd and group of more bytes than this are refused."""
_LAST_ID: Final = (1 << 31) - 1
"""runc takes no higher id."""


class User(NamedTuple):
    """Who the process is. `groups` are the supplementary ones; `home` is "/" where passwd knows
    none; `name` is "" where passwd does not list the uid.
    """

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a job returns it."""
        return {
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "home": self.home,
            "name": self.name,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> User:
        """The opposite of `to_json`."""
        return cls(
            fields["uid"], fields["gid"], tuple(fields["groups"]), fields["home"], fields["name"]
        )


class Account(NamedTuple):
    """A line of passwd."""

    name: str
    uid: int
    gid: int
    home: str


class Group(NamedTuple):
    """A line of group."""

    name: str
    gid: int
    members: tuple[str, ...]


def read_confined(root: int, path: str, limit: int = FILE_LIMIT) -> bytes | None:
    """The bytes of a regular file inside the root (a descriptor of its folder); None where there is
    none. Raises InvalidImage for anything that is no regular file, and for a longer one.
    """
    try:
        found = openat2(root, path, os.O_PATH, resolve=CONFINED)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return None
        raise
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            msg = f"{path} of the image is {_kind(status.st_mode)}, not a regular file"
            raise InvalidImage(msg, next_step="the image's author has to make it a file")
        # The descriptor was looked at before the file is opened: opening a FIFO or a device could
        # block or act.
        opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    data = bytearray()
    try:
        while len(data) <= limit and (piece := os.read(opened, 1 << 20)):
            data += piece
    finally:
        os.close(opened)
    if len(data) > limit:
        msg = f"{path} of the image has more than {limit} bytes"
        raise InvalidImage(msg, next_step="the image's author has to shorten it")
    return bytes(data)


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "of an unknown kind"


def parse_passwd(text: str) -> list[Account]:
    """The well-formed lines of passwd(5); others are passed over (a bad number is never uid 0)."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 4 and fields[0] and _is_id(fields[2]) and _is_id(fields[3]):
            home = fields[5] if len(fields) > 5 else ""
            found.append(Account(fields[0], int(fields[2]), int(fields[3]), home))
    return found


def parse_group(text: str) -> list[Group]:
    """The well-formed lines of group(5)."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 3 and fields[0] and _is_id(fields[2]):
            members = fields[3].split(",") if len(fields) > 3 else []
            found.append(Group(fields[0], int(fields[2]), tuple(m for m in members if m)))
    return found


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _LAST_ID


def _number(text: str) -> int | None:
    """The id that a text is; None for a name. Raises UnknownUser above 2^31-1."""
    if not (text.isascii() and text.isdigit()):
        return None
    if not _is_id(text):
        msg = f"the id {text} is higher than {_LAST_ID}"
        raise UnknownUser(msg, next_step="choose a lower id")
    return int(text)


class _Files:
    """passwd and group of a root."""

    def __init__(self, root: int) -> None:
        self._root = root

    def read(self, path: str, *, needed: bool) -> str:
        """The file's text, "" where it is missing. One that is broken is an error only where it is
        `needed`: a number needs no file.
        """
        try:
            data = read_confined(self._root, path)
        except InvalidImage:
            if needed:
                raise
            data = None
        return (data or b"").decode("utf-8", "surrogateescape")


def resolve_user(root: int, spec: str) -> User:
    """Who `spec` means inside the root: "", user, uid, user:group, uid:gid, uid:group, user:gid.

    "" is uid 0. A number is taken as it is, and a name must be in passwd or group. Without a group
    the gid is that of passwd (0 where it does not list a number), with every group that lists the
    user's name; with a group there are no supplementary ones. Raises UnknownUser, and InvalidImage
    where a file that is needed is no regular file.
    """
    files = _Files(root)
    wanted, _, group = spec.partition(":")
    wanted = wanted or "0"
    uid = _number(wanted)
    accounts = parse_passwd(files.read("etc/passwd", needed=uid is None))
    account = next(
        (a for a in accounts if (a.name == wanted if uid is None else a.uid == uid)), None
    )
    if account is None and uid is None:
        msg = f"the user {wanted!r} is not in the image's /etc/passwd"
        raise UnknownUser(msg, next_step="name one that is, or write a number")
    if account is None:
        account = Account("", uid or 0, 0, "")
    home = account.home or "/"
    if group:
        return User(account.uid, _group_id(files, group), (), home, account.name)
    groups: tuple[int, ...] = ()
    if account.name:
        listed = parse_group(files.read("etc/group", needed=False))
        groups = tuple(dict.fromkeys(g.gid for g in listed if account.name in g.members))
    return User(account.uid, account.gid, groups, home, account.name)


def _group_id(files: _Files, group: str) -> int:
    gid = _number(group)
    if gid is not None:
        return gid
    for entry in parse_group(files.read("etc/group", needed=True)):
        if entry.name == group:
            return entry.gid
    msg = f"the group {group!r} is not in the image's /etc/group"
    raise UnknownUser(msg, next_step="name one that is, or write a number")
