"""The worker's side of the direct launcher: it gives a blank what the bundle says."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import at_end, rebuild
from pytest_sandbox.runtimes.oci.launchers.direct.maker import Maker
from pytest_sandbox.runtimes.oci.launchers.direct.profile import is_system, profile_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_sandbox.oci.cgroups import Cgroups
    from pytest_sandbox.oci.supervisor import Call
    from pytest_sandbox.runtimes.oci.launchers.base import Bundle
    from pytest_sandbox.runtimes.oci.launchers.direct.blank import Blank
    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

_HERE: Final = -100  # AT_FDCWD
_PATIENCE: Final = 30.0
_ATTRIBUTES: Final = {
    "ro": linux.MOUNT_ATTR_RDONLY,
    "rro": linux.MOUNT_ATTR_RDONLY,
    "nosuid": linux.MOUNT_ATTR_NOSUID,
    "nodev": linux.MOUNT_ATTR_NODEV,
    "noexec": linux.MOUNT_ATTR_NOEXEC,
}

_makers: OrderedDict[str, Maker] = OrderedDict()
"""This worker's makers of blanks by the key of their profile, the one used last at the end."""
_MOST_MAKERS: Final = 3
"""A run's items take turns: a system to install in, one to verify in. Each maker holds a blank."""
_TRIES: Final = 8
"""More than blanks wait at once."""
_parent: list[int] = []
"""A pidfd of the supervisor, once it is needed."""


class DirectLauncher:
    """See Launcher. The way to process 1 is said to the caller as `agent`."""

    brings_init = True

    def __init__(self, cgroups: Cgroups | None, filters: Path) -> None:
        """`cgroups`: sandboxes get a group of their own; `filters` is where compiled filters are
        kept.
        """
        self.group = ""
        self._cgroups = cgroups
        self._filters = filters
        self._blank: Blank | None = None
        self._control: socket.socket | None = None
        self._main: dict[str, Any] | None = None
        self._call: Call | None = None
        self._bundle: Bundle | None = None

    def create(self, call: Call, bundle: Bundle) -> int:
        self._call, self._bundle = call, bundle
        known = {} if bundle.known is None else bundle.known
        again = "profile" in known
        if not again:
            known["profile"] = profile_of(
                bundle.spec,
                bundle.user or _plain_user(bundle.spec["process"]["user"]),
                self._cgroups,
                self._filters,
                guarded=call.ids is not None,
            )
        profile: Profile = known["profile"]
        order = {
            "hostname": bundle.spec.get("hostname", ""),
            "read_only": bundle.spec["root"]["readonly"],
        }
        mine, theirs = messages.pair()
        trees = [_root(bundle)]
        try:
            own = [one for one in bundle.spec["mounts"] if not is_system(one)]
            order["mounts"] = [_mount(one, trees, bundle.texts) for one in own]
            self._blank = blank = self._tell(
                profile, call.room, order, [trees[0], theirs.fileno(), *trees[1:]]
            )
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
            for tree in trees:
                os.close(tree)
        self.group = blank.group
        process = bundle.spec["process"]
        self._control = mine
        _await(blank, "settled" if again else "confined")
        if not bundle.serve:
            self._main = {
                "main": True,
                "argv": process["args"],
                "set": {},
                "cwd": process["cwd"],
                "user": "",
            }
        with contextlib.suppress(OSError):  # the next start makes another one
            _makers[profile.key].prepare()
        return blank.pid

    def _tell(
        self, profile: Profile, room: str, order: Mapping[str, Any], descriptors: list[int]
    ) -> Blank:
        """Give the order to a blank; to another one where that was killed while it waited."""
        tries = _TRIES
        while True:
            tries -= 1
            blank = None
            try:
                blank = _take(profile, self._cgroups, room)
                messages.send(blank.end, order, descriptors)
            except (BrokenPipeError, ConnectionResetError, ProcessLookupError) as wrong:
                if blank is not None:
                    blank.throw_away()
                if not tries:
                    _fail(f"sandboxes end before they are told their root ({wrong})", wrong)
            else:
                return blank

    def start(self) -> int:
        assert self._control is not None
        assert self._call is not None
        assert self._bundle is not None
        assert self._blank is not None
        with self._control as control:
            if self._main is not None:
                kept, channel = messages.pair()
                with kept, channel:
                    stdio = self._bundle.stdio
                    messages.send(control, self._main, [channel.fileno(), *stdio])
            else:
                self._call.send({"agent": True}, [control.fileno()])
        self._blank.end.close()
        return 0

    def undo(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._blank is not None:
            self._blank.throw_away()


@at_end
def let_go() -> None:
    """The worker ends: its makers do, too."""
    while _makers:
        _makers.popitem()[1].close()


def _take(profile: Profile, cgroups: Cgroups | None, room: str) -> Blank:
    """A blank of that profile. Raises OSError, RuntimeUnavailable."""
    if profile.key in _makers:
        _makers.move_to_end(profile.key)
        try:
            return _makers[profile.key].take()
        except BrokenPipeError:  # it was killed
            _makers.pop(profile.key).close()
    while len(_makers) >= _MOST_MAKERS:
        _makers.popitem(last=False)[1].close()
    maker = _makers[profile.key] = Maker(profile, cgroups, room, _supervisor())
    return maker.take()


def _supervisor() -> int:
    if not _parent:
        _parent.append(os.pidfd_open(os.getppid()))
    return _parent[0]


def _await(blank: Blank, word: str) -> None:
    """Wait until the sandbox says so: that it has its root (`settled`), or has given up all that it
    must not have, too (`confined`). It does that in any case before its first command. Raises what
    went wrong in it.
    """
    blank.end.settimeout(_PATIENCE)
    try:
        while True:
            received = messages.receive(blank.end)
            if received is None:
                _fail("the sandbox ended while it was made")
            if "failed" in received[0]:
                error = rebuild(received[0]["failed"], "launch:settle")
                if isinstance(error, OSError):
                    _fail(f"the sandbox could not be made: {error}", error)
                raise error
            if word in received[0]:
                return
    except TimeoutError as wrong:
        _fail(f"the sandbox was not made within {_PATIENCE:g} s", wrong)


def _fail(what: str, cause: BaseException | None = None) -> NoReturn:
    step = "run pytest-sandbox doctor, or use --sandbox-launcher=runc"
    raise RuntimeUnavailable(what, next_step=step) from cause


def _root(bundle: Bundle) -> int:
    """The root's tree. From here on nothing but it holds the mount."""
    if bundle.tree >= 0:
        return os.dup(bundle.tree)
    path = bundle.spec["root"]["path"]
    tree = linux.open_tree(_HERE, path, _tree_flags())
    linux.umount(path, linux.MNT_DETACH)
    return tree


def _mount(mount: Mapping[str, Any], trees: list[int], texts: Mapping[str, str]) -> dict[str, Any]:
    """A mount of the spec, as the sandbox is told; the tree of a bind is put behind `trees`."""
    told = {"destination": mount["destination"], "type": mount["type"], "folder": True}
    if mount["type"] != "bind":
        return {**told, "options": mount["options"]}
    if mount["source"] in texts:
        return {**told, "folder": False, "text": texts[mount["source"]]}
    options = mount["options"]
    tree = linux.open_tree(_HERE, mount["source"], _tree_flags(deep="rbind" in options))
    trees.append(tree)
    wanted = 0
    for option in options:
        wanted |= _ATTRIBUTES.get(option, 0)
    if wanted:
        deep = linux.AT_RECURSIVE if "rro" in options else 0
        linux.mount_setattr(tree, flags=linux.AT_EMPTY_PATH | deep, set=wanted)
    return {**told, "folder": stat.S_ISDIR(os.fstat(tree).st_mode)}


def _tree_flags(*, deep: bool = False) -> int:
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
    return flags | linux.AT_RECURSIVE if deep else flags


def _plain_user(user: Mapping[str, Any]) -> dict[str, Any]:
    groups_of = list(user.get("additionalGids", ()))
    return {"uid": user["uid"], "gid": user["gid"], "groups": groups_of, "home": "/"}
