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
from pytest_sandbox.oci.supervisor.jobs import at_end
from pytest_sandbox.runtimes.oci.launchers.direct import hands
from pytest_sandbox.runtimes.oci.launchers.direct.command import Command, Kind, Wish
from pytest_sandbox.runtimes.oci.launchers.direct.maker import Maker
from pytest_sandbox.runtimes.oci.launchers.direct.profile import is_system, profile_of
from pytest_sandbox.runtimes.oci.launchers.direct.program import CHANNEL
from pytest_sandbox.runtimes.oci.launchers.direct.settling import Settling, hand_over
from pytest_sandbox.runtimes.oci.launchers.direct.staging import FIRST_GROUP
from pytest_sandbox.runtimes.oci.programs import not_executed

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_sandbox.oci.cgroups import Cgroups
    from pytest_sandbox.oci.supervisor import Call
    from pytest_sandbox.runtimes.oci.launchers.base import Bundle
    from pytest_sandbox.runtimes.oci.launchers.direct.blank import Blank
    from pytest_sandbox.runtimes.oci.launchers.direct.command import Way
    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

_HERE: Final = -100  # AT_FDCWD
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

    def __init__(
        self, cgroups: Cgroups | None, filters: Path, *, interpreted: bool = False
    ) -> None:
        """`cgroups`: sandboxes get a group of their own; `filters` is where compiled filters are
        kept; `interpreted`: process 1 is a Python even if there is a program for it.
        """
        self._interpreted = interpreted
        self.group = ""
        self._cgroups = cgroups
        self._filters = filters
        self._blank: Blank | None = None
        self._call: Call | None = None
        self._bundle: Bundle | None = None

    def create(self, call: Call, bundle: Bundle) -> int:
        self._call, self._bundle = call, bundle
        known = {} if bundle.known is None else bundle.known
        if "profile" not in known:
            known["profile"] = profile_of(
                bundle.spec,
                bundle.user or _plain_user(bundle.spec["process"]["user"]),
                self._cgroups,
                self._filters,
                guarded=call.ids is not None,
                interpreted=self._interpreted,
            )
        profile: Profile = known["profile"]
        trees = [_root(bundle)]
        try:
            if "settling" not in known:
                known["settling"] = _settling(call.room, profile, bundle, trees)
            self._blank = blank = self._settle(profile, call.room, known["settling"], trees)
        finally:
            for tree in trees:
                os.close(tree)
        self.group = blank.group
        with contextlib.suppress(OSError):  # the next start makes another one
            _makers[profile.key].prepare()
        return blank.pid

    def _settle(self, profile: Profile, room: str, settling: Settling, trees: list[int]) -> Blank:
        """Have a blank take its root; another one where that was killed while it waited."""
        tries = _TRIES
        while True:
            tries -= 1
            blank = None
            try:
                blank = _take(profile, self._cgroups, room)
                settling.settle(blank.end, trees)
            except (BrokenPipeError, ConnectionResetError, ProcessLookupError) as wrong:
                if blank is not None:
                    blank.throw_away()
                if not tries:
                    _fail(f"sandboxes end before they have their root ({wrong})", wrong)
            except OSError as wrong:
                if blank is not None:
                    blank.throw_away()
                _fail(f"the sandbox could not be made: {wrong}", wrong)
            else:
                return blank

    def start(self) -> int:
        assert self._call is not None
        assert self._bundle is not None
        assert self._blank is not None
        profile, end = self._blank.profile, self._blank.end
        with end:
            if not self._bundle.serve:
                _run_main(end, profile.way, self._bundle)
                return 0
            mine, theirs = messages.pair()
            with mine, theirs:
                try:
                    hand_over(end, theirs.fileno())
                except OSError as wrong:
                    _fail(f"the sandbox ended as it was started ({wrong})", wrong)
                told: dict[str, Any] = {"agent": True}
                if not self._bundle.brief:
                    told["way"] = profile.way._asdict()
                self._call.send(told, [mine.fileno()])
        return 0

    def undo(self) -> None:
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


def _run_main(end: socket.socket, way: Way, bundle: Bundle) -> None:
    """Have process 1 run the spec's own command, and nothing else: who holds `end` may go then.
    Where there is no such program its stderr says so, and process 1 ends with 126 or 127. Raises
    RuntimeUnavailable, MissingDirectory.
    """
    process = bundle.spec["process"]
    folder = FIRST_GROUP[0] if way.grouped else -1
    wish = Wish(process["args"], {}, process["cwd"])
    command = Command(way, wish, folder, kind=Kind.MAIN)
    kept, channel = messages.pair()
    with kept, channel:
        try:
            hands.lay_bulk(end, command.table)
            hands.send(end, command.table.message(CHANNEL), [channel.fileno(), *bundle.stdio])
            told = hands.receive(end, command.table)
            _, status = command.begun(command.table.results(told))
        except OSError as wrong:
            _fail(f"the command could not be started: {wrong}", wrong)
    if status:
        with contextlib.suppress(OSError):
            os.write(bundle.stdio[2], not_executed(process["args"][0], status))


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


def _settling(room: str, profile: Profile, bundle: Bundle, trees: list[int]) -> Settling:
    """What a blank is told to do for a bundle. The trees of binds are put behind the root's: a
    bundle whose start is like an earlier one has none.
    """
    own = [one for one in bundle.spec["mounts"] if not is_system(one)]
    order = {
        "hostname": bundle.spec.get("hostname", ""),
        "read_only": bundle.spec["root"]["readonly"],
        "mounts": [_mount(one, trees, bundle.texts) for one in own],
    }
    return Settling(room, profile, order)


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
