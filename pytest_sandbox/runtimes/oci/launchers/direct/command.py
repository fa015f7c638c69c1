"""A command of a sandbox as a table: what confines it, then its program."""

from __future__ import annotations

import errno
import os
import struct
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import MissingDirectory
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.spec.process import DEFAULT_PATH
from pytest_sandbox.runtimes.oci.launchers.direct import privileges
from pytest_sandbox.runtimes.oci.launchers.direct.program import STACK
from pytest_sandbox.runtimes.oci.launchers.direct.staging import SCORE
from pytest_sandbox.runtimes.oci.launchers.direct.tables import (
    LONGEST,
    MAIN,
    SILENT,
    At,
    Table,
    capability_sets,
    given,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OOM_SCORE: Final = 900
"""A command is to be killed before process 1 (proc(5), oom_score_adj)."""
_CANNOT: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR, errno.ELOOP})
_LAST: Final = 0xFFFFFFFF
_SAME_MEMORY: Final = 0x00000100  # CLONE_VM
_WAIT: Final = 0x00004000  # CLONE_VFORK
_ROOM: Final = 24 << 10
_MASK: Final = (1 << 64) - 1


class Way(NamedTuple):
    """How the commands of a sandbox are started; it can be written as JSON.

    `user` is who they are unless they say so (spec.users.User as JSON), `env` what they start with,
    `held` the capabilities of the sandbox's root as bits, `deny` the filter on top of process 1's,
    `score` the oom_score_adj of that. `shared`: a child begins in the memory of process 1.
    """

    user: Mapping[str, Any]
    env: Mapping[str, str]
    rlimits: Sequence[tuple[int, int, int]]
    held: int
    deny: str
    guarded: bool
    grouped: bool
    shared: bool
    score: int


def way_of(
    process: Mapping[str, Any],
    user: Mapping[str, Any],
    deny: bytes,
    *,
    guarded: bool,
    grouped: bool,
    shared: bool,
) -> Way:
    """From the `process` of a runtime spec."""
    env = dict(entry.partition("=")[::2] for entry in process["env"])
    rlimits = [(number, *pair) for number, pair in privileges.limits(process["rlimits"])]
    with open("/proc/self/oom_score_adj", "rb") as file:  # noqa: PTH123
        score = int(file.read())
    held = privileges.bits(process["capabilities"]["bounding"])
    return Way(user, env, rlimits, held, deny.hex(), guarded, grouped, shared, score)


class Kind(Enum):
    """What a command is: the MAIN one is what process 1 lives for; instead of a program there may
    be a VISITOR (see executor), who keeps the channel.
    """

    ORDINARY = "ordinary"
    MAIN = "main"
    VISITOR = "visitor"


_MARKS: Final = {Kind.MAIN: MAIN, Kind.VISITOR: 0}


class Wish(NamedTuple):
    """What is to run. `env` is added to the environment; `user` is None for the sandbox's own."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: Mapping[str, Any] | None = None


class _Opening(NamedTuple):
    """The table of a command up to its working folder. `fence` is where a pipe's descriptors are,
    `entries` the environment that the sandbox has; `clone` is the row that makes the child.
    """

    table: Table
    fence: At | None
    entries: int
    clone: int


class Commands:
    """Makes the tables of one sandbox's commands. What they have in common is written once."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._openings: dict[int, _Opening] = {}

    def command(self, wish: Wish, folder: int) -> Command:
        """`folder` is process 1's descriptor of the command's cgroup, -1 for none."""
        if wish.user is not None or _is_long(self.way, wish):
            return Command(self.way, wish, folder)
        if folder not in self._openings:
            self._openings[folder] = _open(self.way, self.way.user, folder)
        return Command(self.way, wish, folder, opening=self._openings[folder])


class Command:
    """The table of one. Its descriptors are a channel, stdin, stdout and stderr."""

    def __init__(
        self,
        way: Way,
        wish: Wish,
        folder: int,
        *,
        kind: Kind = Kind.ORDINARY,
        opening: _Opening | None = None,
        visit: bytes = b"",
    ) -> None:
        """`visit` is what a visitor is told."""
        user = wish.user or way.user
        self.wish = wish
        if opening is None:
            opening = _open(way, user, folder, kind, bulk=_is_long(way, wish))
        self._clone_row, self._fence = opening.clone, opening.fence
        self.table = table = opening.table.copy()
        self._folder_row = len(table.calls)
        table.call("chdir", os.fsencode(wish.cwd))
        if kind is Kind.VISITOR:
            # As execve(2) would have it.
            table.call("capset", *capability_sets(table, 0 if user["uid"] else way.held, 0))
            table.call("prctl", linux.PR_SET_DUMPABLE, 0)
            table.call("visit", 3, table.place(visit), len(visit))
        else:
            self._execute(way, user, opening.entries)
        self._last_row = len(table.calls)
        table.tail()
        _score(table, way.score)
        if opening.fence is not None:
            self._open_again(opening.fence)

    def _execute(self, way: Way, user: Mapping[str, Any], entries: int) -> None:
        table, wish = self.table, self.wish
        path = wish.env.get("PATH", way.env.get("PATH", ""))
        if wish.env or wish.user is not None:
            entries = table.texts(_pairs(_environment(way, wish, user)))
        argv = [os.fsencode(word) for word in wish.argv]
        words = table.texts(argv)
        for program in candidates(argv[0], os.fsencode(path)):
            table.call("execve", program, words, entries, may=None)

    def _open_again(self, fence: At) -> None:
        """The supervisor has to look into process 1; a change of user in the shared memory closed
        it to all.

        It is opened no sooner than the child has left that memory. execve(2) wakes process 1 a
        little before, and in between the child would be open to its own user, and this memory with
        it. But it closes descriptors after that.
        """
        table = self.table
        table.call("close", At(fence + 4))
        table.call("read", At(fence), int(fence), 1)
        table.call("close", At(fence))
        table.call("prctl", linux.PR_SET_DUMPABLE, 1)

    def begun(self, results: Sequence[int | None]) -> tuple[int, int]:
        """Its pid inside the sandbox, and 126 or 127 where its program could not run: the child has
        ended, or is about to. Raises OSError where there can be no process; MissingDirectory.
        """
        pid = results[self._clone_row]
        if pid is None or pid < 0:
            done = [result for result in results[: self._clone_row + 1] if result is not None]
            raise OSError(-done[-1], os.strerror(-done[-1]))
        for row in range(self._clone_row + 1, self._folder_row + 1):
            result = results[row]
            if result is not None and result < 0:
                if row == self._folder_row:
                    msg = f"cwd {self.wish.cwd!r} is no directory in the sandbox"
                    raise MissingDirectory(msg)
                raise OSError(-result, os.strerror(-result))
        tried = results[self._folder_row + 1 : self._last_row]
        if None in tried:
            return pid, 0
        numbers = {-result for result in tried if result is not None}
        if errno.E2BIG in numbers:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        return pid, 126 if numbers & _CANNOT else 127


def _open(
    way: Way,
    user: Mapping[str, Any],
    folder: int,
    kind: Kind = Kind.ORDINARY,
    *,
    bulk: bool = False,
) -> _Opening:
    table = Table(bulk=bulk)
    fence = At(table.place(bytes(8))) if way.shared and not way.guarded else None
    _score(table, max(_OOM_SCORE, way.score))
    if fence is not None:
        table.call("pipe2", int(fence), os.O_CLOEXEC)
    clone = len(table.calls)
    flags = 0 if kind is Kind.VISITOR else _WAIT | (_SAME_MEMORY if way.shared else 0)
    flags |= linux.CLONE_INTO_CGROUP if folder >= 0 else 0
    stack = STACK - 4096 if way.shared else 0
    table.clone(flags, stack, max(folder, 0), _MARKS.get(kind, SILENT if folder >= 0 else 0))
    _confine(table, way, user, given(0) if kind is Kind.VISITOR else fence and At(fence + 4))
    entries = table.texts(_pairs(_environment(way, Wish((), {}, ""), user)))
    return _Opening(table, fence, entries, clone)


def _score(table: Table, score: int) -> None:
    text = b"%d" % score
    table.call("write", SCORE, text, len(text), may=None)


def _confine(table: Table, way: Way, user: Mapping[str, Any], kept: At | None) -> None:
    """Its session, its descriptors (`kept` is number 3 until its program runs), its limits, and who
    it is.

    The sandbox's root stays who it is: its capabilities are cut to the bounding set by execve(2)
    (capabilities(7)), and until then it has one more than other commands, which keeps them away
    from the memory that it shares with process 1.
    """
    table.call("setsid")
    table.call("rt_sigprocmask", 2, table.place(bytes(8)), 0, 8)  # SIG_SETMASK: none
    for standard in range(3):
        table.call("dup3", given(1 + standard), standard, 0)
    if kept is not None:
        table.call("dup3", kept, 3, os.O_CLOEXEC)
    table.call("close_range", 3 if kept is None else 4, _LAST, 0)
    for number, soft, hard in way.rlimits:
        pair = struct.pack("=QQ", soft & _MASK, hard & _MASK)
        table.call("prlimit64", 0, number, table.place(pair), 0)
    if way.deny:
        code = bytes.fromhex(way.deny)
        program = struct.pack("=HxxxxxxQ", len(code) // 8, table.place(code))
        table.call("prctl", linux.PR_SET_SECCOMP, 2, table.place(program))
    groups, uid, gid = user["groups"], user["uid"], user["gid"]
    table.call("setgroups", len(groups), table.place(struct.pack(f"={len(groups)}I", *groups)))
    if gid:
        table.call("setresgid", gid, gid, gid)
    if uid:
        table.call("setresuid", uid, uid, uid)


def _is_long(way: Way, wish: Wish) -> bool:
    """Whether its words and its environment may be too long for a message."""
    size = sum(4 * len(word) + 16 for word in wish.argv)
    for env in (way.env, wish.env):
        size += sum(4 * (len(name) + len(text)) + 16 for name, text in env.items())
    return size > LONGEST - _ROOM


def _pairs(env: Mapping[bytes, bytes]) -> list[bytes]:
    return [name + b"=" + value for name, value in env.items()]


def _environment(way: Way, wish: Wish, user: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The whole environment of a command. HOME is the user's where nothing else sets it."""
    texts = {**way.env, **wish.env}
    if wish.user is not None or not texts.get("HOME"):
        texts["HOME"] = user["home"]
    return {os.fsencode(name): os.fsencode(text) for name, text in texts.items()}


def candidates(name: bytes, path: bytes) -> list[bytes]:
    """As execvp(3) looks for it."""
    if b"/" in name:
        return [name]
    folders = (path or DEFAULT_PATH.encode()).split(b":")
    return [os.path.join(folder or b".", name) for folder in folders]  # noqa: PTH118
