"""A blank: a process with all namespaces, its own cgroup and the system's mounts, that waits for
a root. It is made ahead, so that what the kernel takes its time for is off a start's path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import cgroups as groups
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import describe
from pytest_sandbox.runtimes.oci.launchers.direct import settling
from pytest_sandbox.runtimes.oci.launchers.direct.group_names import new_name
from pytest_sandbox.runtimes.oci.launchers.direct.nursery import Nursery
from pytest_sandbox.runtimes.oci.launchers.direct.profile import controllers
from pytest_sandbox.runtimes.oci.launchers.direct.quick import Commands
from pytest_sandbox.runtimes.oci.launchers.direct.staging import stage

if TYPE_CHECKING:
    import socket

    from pytest_sandbox.oci.cgroups import Cgroups, GroupPaths
    from pytest_sandbox.runtimes.oci.launchers.direct.nursery import Live
    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

_NICE: Final = -15
_nurseries: list[Nursery] = []
_SPACES: Final = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)


class _Known(NamedTuple):
    """What all blanks of a nursery have in common."""

    profile: Profile
    commands: Commands
    room: str
    supervisor: int


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


def make_blank(profile: Profile, cgroups: Cgroups | None, room: str, supervisor: int) -> Blank:
    """Make one; it goes on by itself while this returns. Raises OSError; RuntimeUnavailable for a
    limit that cannot be set.

    `supervisor` is a pidfd of the process that reaps it, and at whose end it ends; the caller is
    that one's child.
    """
    paths = None
    if cgroups is not None:
        paths = groups.make(cgroups, new_name(), controllers(cgroups))
        _limit(paths, profile)
    group = -1
    if paths is not None and paths.unified is not None:
        # The supervisor's own view of the tree, which can be written to.
        group = os.open(paths.unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mine, theirs = messages.pair()
    ways: list[int] = []
    try:
        if paths is not None:
            ways = groups.entrances(paths)
        pid = _nursery(profile, room, supervisor).clone([theirs.fileno(), *ways], group)
    except BaseException:
        _close_nursery()
        if paths is not None:
            groups.remove(paths)
        mine.close()
        raise
    finally:
        theirs.close()
        for descriptor in (*ways, *([group] if group >= 0 else [])):
            os.close(descriptor)
    blank = Blank(profile, pid, mine, paths)
    try:
        for name, ranges in (("uid_map", profile.uids), ("gid_map", profile.gids)):
            text = "".join(f"{a} {b} {c}\n" for a, b, c in ranges)
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(descriptor, text.encode())
            os.close(descriptor)
        if paths is not None:
            _give_commands(paths, profile)
        _prefer(pid)
        mine.send(b"go")
    except BaseException:
        blank.throw_away()
        raise
    return blank


def _prefer(pid: int) -> None:
    """Have process 1 run before its commands, which share its CPU limit: it ends a fork bomb of
    theirs. Only root may do that; what is not of the usual priority is left as somebody wanted it.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER and os.getpriority(os.PRIO_PROCESS, 0) == 0:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _NICE)
            policy = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK  # its commands are not preferred
            os.sched_setscheduler(pid, policy, os.sched_param(0))


def _nursery(profile: Profile, room: str, supervisor: int) -> Nursery:
    """This process's, for the blanks of a profile."""
    if _nurseries and _nurseries[0].key != profile.key:
        _close_nursery()
    if not _nurseries:

        def ready() -> Live:
            known = _Known(profile, _ready(profile), room, supervisor)

            def live(descriptors: list[int], group: int) -> NoReturn:
                channel, *ways = descriptors
                _live(messages.end_of(channel), known, ways, group)

            return live

        flags = _SPACES | (linux.CLONE_NEWNET if profile.network else 0)
        _nurseries.append(Nursery(profile.key, ready, flags, [supervisor]))
    return _nurseries[0]


def _close_nursery() -> None:
    while _nurseries:
        _nurseries.pop().close()


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


def _ready(profile: Profile) -> Commands:
    """In the nursery: all that blanks need not do one by one. They inherit it, the filter too."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in range(3):  # what the supervisor writes its log to is not the sandbox's
        os.dup2(null, standard)
    os.close(null)
    _forget_arguments()
    commands = Commands.of(profile.process, profile.user, profile.deny)
    linux.install_filter(profile.filter)
    return commands


def _live(channel: socket.socket, known: _Known, ways: list[int], group: int) -> NoReturn:
    """In the blank. It never returns."""
    profile, commands, room, supervisor = known
    try:
        linux.close_all_but([channel.fileno(), supervisor, group, *ways])
        groups.enter(ways)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if channel.recv(16) != b"go":
            os._exit(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.setgroups([])
        # The change of ids took it back; the parent may have died before this.
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if select.select([supervisor], [], [], 0)[0]:
            os._exit(1)
        os.umask(0)
        linux.unshare(linux.CLONE_NEWCGROUP)
        stage(room, profile)
        settling.settle(channel, profile, commands, room, group)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            messages.send(channel, {"failed": describe(error)})
    finally:
        os._exit(1)


def _forget_arguments() -> None:
    """Nobody in the sandbox reads in /proc/1/cmdline how the supervisor was started."""
    linux.prctl(linux.PR_SET_NAME, b"sandbox-init")
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    if end > begin:
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, b"sandbox-init", min(12, end - begin))
