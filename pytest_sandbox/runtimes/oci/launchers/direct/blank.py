"""A blank: a process with all namespaces, its own cgroup and the system's mounts, that waits for
a root. It is made ahead, so that what the kernel takes its time for is off a start's path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import cgroups as groups
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.launchers.direct import hands, privileges, program, staging
from pytest_sandbox.runtimes.oci.launchers.direct.executor import live
from pytest_sandbox.runtimes.oci.launchers.direct.group_names import new_name
from pytest_sandbox.runtimes.oci.launchers.direct.profile import controllers
from pytest_sandbox.runtimes.oci.launchers.direct.spawn import Row, pack, spawn
from pytest_sandbox.runtimes.oci.launchers.direct.tables import NUMBERS

if TYPE_CHECKING:
    import socket

    from pytest_sandbox.oci.cgroups import Cgroups, GroupPaths
    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

_NICE: Final = -15
_SPACES: Final = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)
_ABOVE: Final = 30
"""Descriptors that a blank is given are copied from here on: below are those that it gets."""
_HEARD: Final = ("CHLD", "TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT")
"""Signals that process 1 reads: ends of its children, and what it passes on to a main process."""
_AMBIENT: Final = 47  # PR_CAP_AMBIENT
_RAISE: Final = 2  # PR_CAP_AMBIENT_RAISE
_LAST: Final = 0xFFFFFFFF


class Blank:
    """One, as its maker sees it. `end` is the way to it, `group` its cgroup's name (empty: it has
    none), `paths` the folders of that.
    """

    def __init__(
        self, profile: Profile, pid: int, end: socket.socket, paths: GroupPaths | None
    ) -> None:
        self.profile = profile
        self.pid = pid
        self.end = end
        self.paths = paths
        self.group = paths.name if paths else ""

    def throw_away(self) -> None:
        """End it, and remove its cgroup."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.end.close()
        if self.paths is not None:
            groups.remove(self.paths)


class Mould:
    """Makes blanks of one profile, in the process that it was made in: that has the profile's
    filter from then on, and no signal handlers.
    """

    def __init__(
        self, profile: Profile, cgroups: Cgroups | None, room: str, supervisor: int
    ) -> None:
        """`supervisor` is a pidfd of the process that reaps blanks, and at whose end they end; this
        process is that one's child. Raises OSError.
        """
        self._profile = profile
        self._cgroups = cgroups
        self._supervisor = supervisor
        self._staging = staging.stage(room, profile, grouped=bool(cgroups and cgroups.unified))
        # What was ignored when pytest was started is inherited to here: no command is to have it.
        # (Python itself ignores SIGPIPE.)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        self._kept: list[Any] = []
        self._interpreted = not profile.way.shared
        self._null = _above(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self._program = -1 if self._interpreted else _above(program.program())
        heard = sum(1 << (signal.Signals[f"SIG{name}"] - 1) for name in _HEARD)
        self._heard = self._place(struct.pack("=Q", heard))
        self._signals = _above(linux.signalfd(heard))
        self._zero = self._place(b"0")
        self._rows = b"" if self._interpreted else pack(self._common())
        linux.install_filter(profile.filter)

    def _place(self, data: bytes) -> int:
        self._kept.append(ctypes.create_string_buffer(data, len(data) + 1))
        return ctypes.addressof(self._kept[-1])

    def _common(self) -> list[Row]:
        """What a blank does after it has its descriptors: it keeps all capabilities of its
        namespace (it is nobody there until its ids are written, and such a one loses them with
        execve(2)), and becomes the program.
        """
        low, high = privileges.EVERY & _LAST, privileges.EVERY >> 32
        header = self._place(struct.pack("=Ii", linux.CAPABILITY_VERSION, 0))
        data = self._place(struct.pack("=6I", *(low,) * 3, *(high,) * 3))
        words = self._place(struct.pack("=QQ", self._place(b"sandbox-init"), 0))
        none = self._place(bytes(8))
        number = NUMBERS
        return [
            Row(number["rt_sigprocmask"], (signal.SIG_SETMASK, self._heard, 0, 8)),
            *(Row(number["dup3"], (self._null, standard, 0)) for standard in range(3)),
            Row(number["dup3"], (self._signals, program.SIGNALS, 0)),
            Row(number["close_range"], (staging.GROUP + 1, self._program - 1, 0)),
            Row(number["close_range"], (self._program + 1, _LAST, 0)),
            Row(number["capset"], (header, data), rest=True),
            *(
                Row(number["prctl"], (_AMBIENT, _RAISE, one, 0, 0), rest=True)
                for one in range(privileges.EVERY.bit_length())
            ),
            Row(
                number["execveat"],
                (self._program, self._place(b""), words, none, linux.AT_EMPTY_PATH),
            ),
        ]

    def blank(self) -> Blank:
        """Make one. Raises OSError; RuntimeUnavailable for a limit that cannot be set."""
        paths = None
        if self._cgroups is not None:
            paths = groups.make(self._cgroups, new_name(), controllers(self._cgroups))
            _limit(paths, self._profile)
        mine, theirs = messages.pair()
        try:
            with theirs:
                pid = self._clone(theirs, paths)
        except BaseException:
            mine.close()
            if paths is not None:
                groups.remove(paths)
            raise
        blank = Blank(self._profile, pid, mine, paths)
        try:
            self._stage(blank)
        except BaseException:
            blank.throw_away()
            raise
        return blank

    def _clone(self, channel: socket.socket, paths: GroupPaths | None) -> int:
        ways = [] if paths is None else groups.entrances(paths)
        given = [fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, _ABOVE)]
        group = -1
        try:
            if paths is not None and paths.unified is not None:
                # The supervisor's own view of the tree, which can be written to.
                folder = os.open(paths.unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                group = _above(folder)
                given.append(group)
            first = [
                Row(NUMBERS["prctl"], (linux.PR_SET_PDEATHSIG, signal.SIGKILL)),
                *(Row(NUMBERS["write"], (way, self._zero, 1)) for way in ways),
                Row(NUMBERS["dup3"], (given[0], program.CHANNEL, 0)),
                *(Row(NUMBERS["dup3"], (one, staging.GROUP, 0)) for one in given[1:]),
                *([] if group >= 0 else [Row(NUMBERS["close_range"], (5, 5, 0))]),
            ]
            flags = _SPACES | linux.CLONE_PARENT | (0 if group < 0 else linux.CLONE_INTO_CGROUP)
            if self._profile.network:
                flags |= linux.CLONE_NEWNET
            if self._interpreted:
                return self._fork(flags, ways, given)
            table = pack(first) + self._rows
            spawned = spawn(table, flags=flags, cgroup=max(group, 0), signal=0)
        finally:
            for descriptor in (*ways, *given):
                os.close(descriptor)
        if (wrong := spawned.failed()) is not None:
            index, number = wrong
            raise OSError(number, f"{os.strerror(number)} (step {index})")
        return spawned.pid

    def _fork(self, flags: int, ways: list[int], given: list[int]) -> int:
        """The same with a Python in place of the program."""
        pid = linux.clone3(flags, cgroup=given[1] if len(given) > 1 else -1)
        if pid == 0:
            try:
                linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
                groups.enter(ways)
                heard = [signal.Signals[f"SIG{name}"] for name in _HEARD]
                signal.pthread_sigmask(signal.SIG_SETMASK, heard)
                places = (0, 1, 2, program.SIGNALS, program.CHANNEL, staging.GROUP)
                sources = (*(self._null,) * 3, self._signals, *given)
                for place, source in zip(places, sources, strict=False):
                    os.dup2(source, place)
                linux.close_range(program.SIGNALS + len(given))
                live()
            finally:
                os._exit(1)
        return pid

    def _stage(self, blank: Blank) -> None:
        """It has its program, and does what it is told from here on."""
        profile = self._profile
        try:
            for name, ranges in (("uid_map", profile.uids), ("gid_map", profile.gids)):
                text = "".join(f"{a} {b} {c}\n" for a, b, c in ranges)
                descriptor = os.open(f"/proc/{blank.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                os.write(descriptor, text.encode())
                os.close(descriptor)
        except FileNotFoundError:  # somebody killed it
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        if blank.paths is not None:
            _give_commands(blank.paths, profile)
        _prefer(blank.pid)
        self._staging.check(hands.tell(blank.end, self._staging.table))
        if select.select([self._supervisor], [], [], 0)[0]:
            raise ChildProcessError  # it was gone before the blank could be told to end with it


def _above(descriptor: int) -> int:
    """The same, out of the way of those that a blank gets."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    finally:
        os.close(descriptor)


def _prefer(pid: int) -> None:
    """Have process 1 run before its commands, which share its CPU limit: it ends a fork bomb of
    theirs. Only root may do that; what is not of the usual priority is left as somebody wanted it.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER and os.getpriority(os.PRIO_PROCESS, 0) == 0:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _NICE)
            policy = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK  # its commands are not preferred
            os.sched_setscheduler(pid, policy, os.sched_param(0))


def _limit(paths: GroupPaths, profile: Profile) -> None:
    try:
        groups.limit(paths, **profile.limits)  # type: ignore[arg-type]
    except OSError as wrong:
        groups.remove(paths)
        msg = f"a limit cannot be set: {wrong}"
        raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor") from wrong


def _give_commands(paths: GroupPaths, profile: Profile) -> None:
    """Let the sandbox's process 1 make groups for commands, in the v2 tree.

    Commands cannot: the tree is mounted read-only in their sandbox, and no descriptor reaches them.
    """
    if paths.unified is None:
        return
    owner = (profile.uids[0][1], profile.gids[0][1])
    for path in (paths.unified, paths.unified / "cgroup.procs"):
        os.chown(path, *owner)
