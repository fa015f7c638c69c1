"""Process 1 of a sandbox: it starts commands for the client, reaps, and ends what has to end.

It talks to the client alone, over a channel that nothing inside can reach: one message for each
command, with its descriptors and a channel of its own, where its end is told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import describe
from pytest_sandbox.runtimes.killing import Hunt, now_in_ticks
from pytest_sandbox.runtimes.oci.launchers.direct.command import OOM_SCORE, attempt, become
from pytest_sandbox.runtimes.oci.launchers.direct.hunting import kill_processes
from pytest_sandbox.runtimes.oci.programs import not_executed

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from pytest_sandbox.runtimes.oci.launchers.direct.quick import Commands, QuickStart

_PATIENCE: Final = 10.0
"""Seconds in which a killed command is gone."""
_FORWARDED: Final = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT")


class Group:
    """A cgroup of the v2 tree for commands, used again when nothing is left in it."""

    def __init__(self, parent: int, number: int) -> None:
        self.name = f"c{number}"
        self.killed = False
        os.mkdir(self.name, 0o755, dir_fd=parent)
        self._parent = parent
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self.folder = os.open(self.name, flags, dir_fd=parent)
        self._kill = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.folder)
        self._events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.folder)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that it needs."""
        return self.folder, self._kill, self._events

    def empty(self) -> bool:
        """Whether no process is in it."""
        return b"populated 0" in os.pread(self._events, 200, 0)

    def kill(self) -> None:
        """SIGKILL to everything in it. No process can be cloned into it after that: Linux 6.14 and
        later kill it at once, as they compare kill_seq with the parent's group.
        """
        self.killed = True
        os.write(self._kill, b"1")

    def remove(self) -> None:
        """It is empty, and used no more."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.rmdir(self.name, dir_fd=self._parent)


class Command:
    """One of them, until its channel is closed."""

    def __init__(self, pid: int, channel: socket.socket, group: Group | None, main: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.group = group
        self.main = main
        self.since = now_in_ticks()
        self.ended = False
        self.status = 0
        """Its exit status where its program could not run."""


class Agent:
    """The loop of process 1. `parent` is a descriptor of the sandbox's group in the v2 tree, -1
    for none. Made while there is time: what the first command needs is ready then.
    """

    def __init__(self, commands: Commands, parent: int, *, guarded: bool) -> None:
        self._confinement = commands.confinement
        self._parent = parent
        self._poll = select.poll()
        self._quick = commands.quick
        self._guarded = guarded
        self._running: dict[int, Command] = {}
        self._channels: dict[int, Command] = {}
        self._free: list[Group] = []
        self._busy: list[Group] = []
        self._numbers = 0
        self._over = False
        self._told, self._tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """The ends of a pipe: see signal.set_wakeup_fd."""
        signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        if (group := self._group()) is not None:
            self._free.append(group)

    @property
    def descriptors(self) -> list[int]:
        """Those that it needs, but for the control channel."""
        found = [self._told, self._tell, *([self._parent] if self._parent >= 0 else [])]
        return found + [one for group in self._free for one in group.descriptors]

    def serve(self, control: socket.socket) -> None:
        """Work until the client is gone, or the main process has ended."""
        reader = self._told
        for descriptor in (reader, control.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        while not self._over:
            ready = [descriptor for descriptor, _ in self._poll.poll()]
            for descriptor in ready:
                if descriptor == reader:
                    self._signals(os.read(reader, 512))
                elif descriptor in self._channels:
                    self._hear(self._channels[descriptor])
            if control.fileno() in ready:  # last: what has ended leaves its group to the next one
                self._request(control)

    # --- commands ---------------------------------------------------------------------------

    def _request(self, control: socket.socket) -> None:
        received = None
        with contextlib.suppress(OSError, ValueError):
            received = messages.receive(control)
        if received is None:
            # A main process needs no client: the supervisor's end is what ends it.
            self._over = not any(command.main for command in self._running.values())
            self._poll.unregister(control)
            return
        message, (end, *stdio) = received
        channel = messages.end_of(end)
        try:
            self._begin(message, channel, stdio)
        except SandboxError as error:
            with contextlib.suppress(OSError):
                messages.send(channel, {"failed": describe(error)})
            channel.close()
        except OSError as error:
            with contextlib.suppress(OSError):
                full = error.errno in {errno.EAGAIN, errno.ENOMEM}
                messages.send(channel, {"full": True} if full else {"errno": error.errno})
            channel.close()
        finally:
            for descriptor in stdio:
                os.close(descriptor)

    def _begin(self, message: Mapping[str, Any], channel: socket.socket, stdio: list[int]) -> None:
        group = self._group()
        try:
            pid, status = self._child(message, channel, stdio, group)
        except BaseException:
            if group is not None:
                self._put(group)
            raise
        if status:
            with contextlib.suppress(OSError):
                os.write(stdio[2], not_executed(message["argv"][0], status))
        command = Command(pid, channel, group, bool(message.get("main")))
        command.status = status
        self._running[pid] = command
        self._channels[channel.fileno()] = command
        self._poll.register(channel, select.POLLIN)
        if command.main:
            for name in _FORWARDED:
                signal.signal(signal.Signals[f"SIG{name}"], _nothing)

    def _child(
        self,
        message: Mapping[str, Any],
        channel: socket.socket,
        stdio: list[int],
        group: Group | None,
    ) -> tuple[int, int]:
        """A new process, and its status where its program cannot run."""
        if self._quick is not None and "trial" not in message:
            folder = None if group is None else group.folder
            if self._guarded:
                pid, status = self._quick.begin(message, stdio, folder)
            else:
                pid, status = self._open_again(self._quick, message, stdio, folder)
            if not status:
                _first_to_go(pid)
            return pid, status
        pid = self._fork(group)
        if pid == 0:
            # Nothing of process 1 is in reach of a command, not even before its program runs.
            linux.close_all_but([channel.fileno(), *stdio])
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if "trial" in message:
                attempt(self._confinement, message, channel)
            become(self._confinement, message, stdio, channel)
        return pid, 0

    def _open_again(
        self, quick: QuickStart, message: Mapping[str, Any], stdio: list[int], folder: int | None
    ) -> tuple[int, int]:
        """As `begin`, where the supervisor has to look into this process: a change of user in the
        shared memory closed it to all.

        It is opened no sooner than the child has left that memory. execve(2) wakes this process a
        little before, and in between the child would be open to its own user, and this memory with
        it. But it closes descriptors after that.
        """
        left, held = os.pipe2(os.O_CLOEXEC)
        try:
            return quick.begin(message, stdio, folder, held)
        finally:
            os.close(held)
            os.read(left, 1)
            os.close(left)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)

    def _fork(self, group: Group | None) -> int:
        if group is None:
            return os.fork()
        flags = linux.CLONE_INTO_CGROUP
        return linux.clone3(flags, exit_signal=signal.SIGCHLD, cgroup=group.folder)

    def _group(self) -> Group | None:
        if self._parent < 0:
            return None
        for group in [group for group in self._busy if group.empty()]:
            self._busy.remove(group)
            self._put(group)
        if self._free:
            return self._free.pop()
        self._numbers += 1
        return Group(self._parent, self._numbers)

    def _signals(self, numbers: bytes) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
        for number in set(numbers) - {signal.SIGCHLD}:
            for command in self._running.values():
                if command.main:
                    os.kill(command.pid, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            command = self._running.pop(pid, None)
            if command is None:
                continue  # an orphan
            command.ended = True
            code = command.status or os.waitstatus_to_exitcode(status)
            if command.main:
                os._exit(code if code >= 0 else 128 - code)
            with contextlib.suppress(OSError):
                cpu = used.ru_utime + used.ru_stime
                messages.send(command.channel, {"exit": code, "cpu": cpu})

    # --- their ends -------------------------------------------------------------------------

    def _hear(self, command: Command) -> None:
        """Its client wants all of it to end, or has done with it."""
        received = None
        with contextlib.suppress(OSError, ValueError):
            received = messages.receive(command.channel)
        if received is not None:
            done = self._kill(command)
            with contextlib.suppress(OSError):
                messages.send(command.channel, {"killed": done})
            return
        if not command.ended and not command.main:
            self._kill(command)  # nobody waits for it any more
        self._poll.unregister(command.channel)
        del self._channels[command.channel.fileno()]
        command.channel.close()
        if command.group is not None:
            self._put(command.group)

    def _put(self, group: Group) -> None:
        if not group.empty():
            self._busy.append(group)
        elif group.killed:
            group.remove()
        else:
            self._free.append(group)

    def _kill(self, command: Command) -> bool:
        """End everything of a command; whether that is done."""
        deadline = time.monotonic() + _PATIENCE
        if command.group is None:
            others = [pid for pid in self._running if pid != command.pid]
            root = 0 if command.ended else command.pid
            hunt = Hunt(since=command.since, root=root, session=command.pid)
            done = kill_processes(hunt, others, self._reap, deadline)
        else:
            command.group.kill()
            while not (done := command.group.empty()) and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.0005)
        self._reap()  # a zombie still counts against the limit of processes
        return done


def _first_to_go(pid: int) -> None:
    """A command is killed for want of memory before process 1 is."""
    with contextlib.suppress(OSError):
        score = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(score, OOM_SCORE)
        finally:
            os.close(score)


def _nothing(*_: object) -> None:
    """A signal is told by the wakeup descriptor; ignoring it would be inherited."""
