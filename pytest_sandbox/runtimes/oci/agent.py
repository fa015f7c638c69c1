"""What a client has process 1 of a sandbox do, where the direct launcher started it."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.killing import Hunt, kill_tree, now_in_ticks
from pytest_sandbox.runtimes.oci.hunting import InsideSight
from pytest_sandbox.runtimes.oci.launchers.direct import hands
from pytest_sandbox.runtimes.oci.launchers.direct.command import Command, Commands, Wish
from pytest_sandbox.runtimes.oci.launchers.direct.program import MOST_COMMANDS
from pytest_sandbox.runtimes.oci.launchers.direct.staging import FIRST_GROUP, GROUP, make_group
from pytest_sandbox.runtimes.oci.launchers.direct.tables import NOBODY, Table

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_END: Final = struct.Struct("=ixxxxqqqq")
"""Status as wait(2) has it, then seconds and microseconds in the program and in the kernel."""
SETTLE: Final = 5.0
"""Process 1 answers within so many seconds, or the sandbox has to end: something in it may have
stopped it.
"""
_PATIENCE: Final = 10.0
"""Seconds in which a killed command is gone."""
_REMOVE_FOLDER: Final = 0x200  # AT_REMOVEDIR


class End(NamedTuple):
    """How a command ended: its exit status (below 0: the signal), its CPU seconds."""

    code: int
    cpu: float

    @classmethod
    def read(cls, data: bytes) -> End:
        """As process 1 tells it."""
        status, user, user_micro, system, system_micro = _END.unpack(data)
        cpu = user + system + (user_micro + system_micro) / 1e6
        return cls(os.waitstatus_to_exitcode(status), cpu)


class Group:
    """A cgroup of the v2 tree for commands, used again when nothing is left in it. `folder` is the
    host's path of the sandbox's own.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"c{number + 1}"
        self.number = number
        self.descriptors = (FIRST_GROUP[0] + 2 * number, FIRST_GROUP[1] + 2 * number)
        """Process 1's: of its folder, and of the file that kills it."""
        self.killed = False
        self._folder = folder
        self._events = -1

    def empty(self) -> bool:
        """Whether no process is in it."""
        try:
            if self._events < 0:
                path = f"{self._folder}/{self.name}/cgroup.events"
                self._events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return b"populated 0" in os.pread(self._events, 200, 0)
        except OSError as wrong:
            # It is gone, and the sandbox with it.
            return wrong.errno in {errno.ENOENT, errno.ENODEV}

    def kill(self) -> bool:
        """SIGKILL to everything in it; False where that is for process 1 to do: the group is a
        user's.

        Process 1 shares its CPU limit with a fork bomb, and would have to wait for its turn. No
        process can be cloned into the group after that: Linux 6.14 and later kill it at once, as
        they compare kill_seq with the parent's group.
        """
        try:
            path = f"{self._folder}/{self.name}/cgroup.kill"
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.write(descriptor, b"1")
        finally:
            os.close(descriptor)
        return True

    def close(self) -> None:
        """Its files are read no more."""
        if self._events >= 0:
            os.close(self._events)
            self._events = -1


class Running:
    """A command, until it is let go. `channel` tells its beginning, then its end."""

    def __init__(self, command: Command, channel: socket.socket, group: Group | None) -> None:
        self.command = command
        self.channel = channel
        self.group = group
        self.since = now_in_ticks()
        self.pid = 0


class Agent:
    """One sandbox's process 1. `folder` is the sandbox's folder in the v2 tree, on the host."""

    def __init__(
        self,
        control: socket.socket,
        commands: Commands,
        folder: Path | None,
        user_of: Callable[[str], dict[str, Any]],
    ) -> None:
        self._control = control
        self._commands = commands
        self._folder = folder if commands.way.grouped else None
        self._user_of = user_of
        self._lock = threading.Lock()
        self._bulk = threading.Lock()
        """Held where tables count on what lies at BULK."""
        self._closed = False
        self._running: list[Running] = []
        self._busy: list[Group] = []
        self._numbers: set[int] = set()
        self._free: list[Group] = []
        if self._folder is not None:
            self._numbers.add(0)
            self._free.append(Group(self._folder, 0))

    def begin(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str, user: str, stdio: Sequence[int]
    ) -> Running:
        """Have it start a command; see `begun`. Raises OSError where the sandbox is gone,
        BlockingIOError for too many commands at once, UnknownUser, InvalidImage.
        """
        wish = Wish(argv, env, cwd, self._user_of(user) if user else None)
        mine, theirs = messages.pair()
        try:
            running = self._register(wish, mine)
        except BaseException:
            mine.close()
            theirs.close()
            raise
        try:
            with theirs, self._bulk if running.command.table.bulk else contextlib.nullcontext():
                table = running.command.table
                hands.lay_bulk(self._control, table)
                hands.send(self._control, table.message(~0), [theirs.fileno(), *stdio])
        except BaseException:
            self.let_go(running)
            raise
        return running

    def _register(self, wish: Wish, channel: socket.socket) -> Running:
        with self._lock:
            if self._closed:
                raise ConnectionResetError
            if len(self._running) >= MOST_COMMANDS:
                msg = f"{MOST_COMMANDS} commands of the sandbox run already"
                raise BlockingIOError(msg)
            group = self._group()
            try:
                folder = -1 if group is None else group.descriptors[0]
                running = Running(self._commands.command(wish, folder), channel, group)
            except BaseException:
                if group is not None:
                    self._put(group)
                raise
            self._running.append(running)
        return running

    @staticmethod
    def hear(running: Running) -> End | int:
        """What its channel says: that its program runs (0), or cannot (126, 127), which is not said
        in any case; then its end. Raises ConnectionError where the sandbox is gone, OSError where
        there can be no process, MissingDirectory.
        """
        table = running.command.table
        told = running.channel.recv(8 * len(table.calls) + 1)
        if not told:
            raise ConnectionResetError
        if len(told) == _END.size:  # no table of a command is as short as that
            return End.read(told)
        running.pid, status = running.command.begun(table.results(told))
        return status

    def kill(self, running: Running) -> bool:
        """End everything of a command; whether that is done. Raises OSError where process 1 is gone
        or does not answer.
        """
        deadline = time.monotonic() + _PATIENCE
        group = running.group
        if group is None:
            return self._hunt(running, deadline)
        # Where nothing is in it, its start may be on its way yet: process 1 keeps the order.
        group.killed = True
        if group.empty() or not group.kill():
            table = Table()
            table.call("write", group.descriptors[1], b"1", 1)
            hands.run(self._control, table, patience=SETTLE)
        while not (done := group.empty()) and time.monotonic() < deadline:
            time.sleep(0.0005)
        return done

    def _hunt(self, running: Running, deadline: float) -> bool:
        def others() -> list[int]:
            """One whose pid is not known yet is somebody, too."""
            with self._lock:
                return [one.pid or -1 for one in self._running if one is not running]

        return kill_tree(
            InsideSight(self._control, self._bulk),
            Hunt(since=running.since, root=running.pid, session=running.pid),
            ours=lambda: {1},
            other_workers=tuple,
            other_roots=others,
            timeout=max(deadline - time.monotonic(), 0.1),
        )

    def let_go(self, running: Running) -> None:
        """Nobody waits for a command any more: it has ended, or was killed."""
        running.channel.close()
        with self._lock:
            self._running.remove(running)
            if running.group is not None:
                self._put(running.group)

    def close(self) -> None:
        """The sandbox ends, if it has not yet."""
        with self._lock:
            self._closed = True
            for group in {one.group for one in self._running} | {*self._free, *self._busy}:
                if group is not None:
                    group.close()
            self._control.close()

    # --- groups -----------------------------------------------------------------------------

    def _group(self) -> Group | None:
        if self._folder is None:
            return None
        for group in [group for group in self._busy if group.empty()]:
            self._busy.remove(group)
            self._put(group)
        if self._free:
            return self._free.pop()
        number = next(one for one in range(len(self._numbers) + 1) if one not in self._numbers)
        group = Group(self._folder, number)
        table = Table()
        make_group(table, group.name, group.descriptors)
        hands.run(self._control, table)
        self._numbers.add(number)
        return group

    def _put(self, group: Group) -> None:
        if not group.empty():
            self._busy.append(group)
        elif group.killed:
            self._remove(group)
        else:
            self._free.append(group)

    def _remove(self, group: Group) -> None:
        group.close()
        table = Table()
        for descriptor in group.descriptors:
            table.call("close", descriptor, may=None)
        table.call("unlinkat", GROUP, os.fsencode(group.name), _REMOVE_FOLDER, may=None)
        with contextlib.suppress(OSError):
            hands.send(self._control, table.message(NOBODY), ())
        self._numbers.remove(group.number)
