"""The supervisor's own process: namespaces, jobs in forked children, the ends of sandboxes.

It is single-threaded and small, so that a fork costs a millisecond. It does what needs the ids or
the mounts of sandboxes, reaps them (as their subreaper), and ends with its client.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import Call, describe, find_job, perform, warn

_UNCLAIMED: Final = 4096
_LOST: Final = int(signal.SIGKILL)
"""The status of a process whose end was not seen: as wait(2) gives it."""


@dataclass
class Watched:
    """A sandbox's first process, or another one whose end somebody waits for."""

    pid: int
    channel: socket.socket | None
    companions: list[int] = field(default_factory=list)
    after: list[Any] | None = None
    name: str = ""
    ended: bool = False


@dataclass
class Job:
    """A job's process: who asked for it, with which number, or whose end it follows."""

    client: socket.socket | None
    number: int = 0
    follows: Watched | None = None


class Supervisor:
    """The loop."""

    def __init__(self, main: socket.socket, setup: dict[str, Any]) -> None:
        self._main = main
        self._lasting = bool(setup["lasting"])
        self._room: str = setup["room"]
        self._rootless = bool(setup["rootless"])
        self._ids: int | None = None
        self._setup = setup
        self._selector = selectors.DefaultSelector()
        self._jobs: dict[int, Job] = {}
        self._watched: dict[int, Watched] = {}
        self._unclaimed: OrderedDict[int, int] = OrderedDict()
        self._clients = 0
        self._over = False
        self._notes, self._note = messages.pair()

    # --- its place --------------------------------------------------------------------------

    def settle(self) -> None:
        """Enter the namespaces and mount the room. Raises OSError."""
        linux.prctl(linux.PR_SET_NAME, b"sandbox-keeper")
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        if self._rootless:
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
            messages.send(self._main, {"map": os.getpid()})
            if messages.receive(self._main) is None:
                sys.exit(1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            with contextlib.suppress(OSError):
                os.setgroups([])
        else:
            linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.mount(
            "tmpfs", self._room, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0711,size=1g"
        )
        if not self._rootless:
            self._ids = self._make_ids()

    def _make_ids(self) -> int:
        """A user namespace with the sandboxes' ids, held by a descriptor."""
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(go[1])  # else it would wait for itself
                linux.unshare(linux.CLONE_NEWUSER)
                os.write(ready[1], b".")
                os.read(go[0], 1)
            finally:
                os._exit(0)
        for end in (ready[1], go[0]):
            os.close(end)
        try:
            if not os.read(ready[0], 1):
                msg = "no user namespace can be made"
                raise OSError(msg)
            for name in ("uid", "gid"):
                lines = "".join(f"{a} {b} {c}\n" for a, b, c in self._setup[f"{name}s"])
                with open(f"/proc/{child}/{name}_map", "w", encoding="ascii") as file:  # noqa: PTH123
                    file.write(lines)
            return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(ready[0])
            os.close(go[1])
            os.waitpid(child, 0)

    def _enter(self) -> None:
        if self._ids is not None:
            linux.setns(self._ids, linux.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            with contextlib.suppress(OSError):
                os.setgroups([])
            self._ids = None
        _die_with_parent()

    # --- the loop ---------------------------------------------------------------------------

    def serve(self) -> None:
        """Work until the client is gone (a lasting one: until its last sandbox is)."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self._selector.register(reader, selectors.EVENT_READ, ("signal", None))
        self._selector.register(self._notes, selectors.EVENT_READ, ("note", None))
        self._add_client(self._main)
        if not self._lasting:
            watch = os.pidfd_open(self._setup["client"])
            self._selector.register(watch, selectors.EVENT_READ, ("client-gone", None))
        gc.collect()
        gc.freeze()
        messages.send(self._main, {"ready": os.getpid()})
        while not self._finished():
            for key, _ in self._selector.select():
                # What came before it in this round may have closed it.
                if self._selector.get_map().get(key.fd) is key:
                    self._handle(key)

    def _finished(self) -> bool:
        if self._over or (self._lasting and self._clients == 0):
            return not self._watched and not self._jobs
        return False

    def _handle(self, key: selectors.SelectorKey) -> None:
        kind, what = key.data
        if kind == "signal":
            with contextlib.suppress(BlockingIOError):
                os.read(key.fd, 4096)
            self._reap()
        elif kind == "note":
            self._take_notes()
        elif kind == "client-gone":
            self._selector.unregister(key.fd)
            self._stop()
        elif kind == "channel":
            self._hear(what)
        elif kind == "listen":
            with contextlib.suppress(OSError):
                self._add_client(what.accept()[0])
        elif kind == "request":
            self._request(what)

    def _add_client(self, client: socket.socket) -> None:
        self._clients += 1
        self._selector.register(client, selectors.EVENT_READ, ("request", client))

    def _request(self, client: socket.socket) -> None:
        received = None
        with contextlib.suppress(OSError, ValueError):
            received = messages.receive(client)
        if received is None:
            self._selector.unregister(client)
            client.close()
            self._clients -= 1
            if client is self._main and not self._lasting:
                self._stop()
            return
        message, fds = received
        if "cancel" in message:
            for pid, job in self._jobs.items():
                if job.client is client and job.number == message["cancel"]:
                    _kill(pid)
        elif "listen" in message:
            listener = socket.socket(fileno=fds[0])
            self._selector.register(listener, selectors.EVENT_READ, ("listen", listener))
        else:
            self._begin(client, message, fds)

    def _begin(self, client: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        reply = socket.socket(fileno=fds[0])
        try:
            job = self._find(message["job"])
            self._fork(job, message, fds[1:], reply, Job(client, int(message["number"])))
        except Exception as error:
            with contextlib.suppress(OSError):
                messages.send(reply, {"failed": describe(error)})
        finally:
            reply.close()
            for descriptor in fds[1:]:
                os.close(descriptor)

    def _find(self, name: str) -> Any:
        """A job. It is imported here, once: the children share it, and do not collect it."""
        before = len(sys.modules)
        job = find_job(name)
        if len(sys.modules) > before:
            gc.collect()
            gc.freeze()
        return job

    def _fork(
        self,
        job: Any,
        message: dict[str, Any],
        fds: list[int],
        reply: socket.socket,
        noted: Job,
    ) -> None:
        pid = os.fork()
        if pid:
            self._jobs[pid] = noted
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _die_with_parent()
            self._main.close()
            call = Call(
                message["args"],
                fds,
                reply=reply,
                note=self._note,
                room=self._room,
                enter=self._enter,
                ids=self._ids,
            )
            if message.get("where") == "mapped":
                self._enter()
            perform(job, call, "done" if noted.follows is None else "gone")
        except BaseException as error:
            with contextlib.suppress(OSError):
                messages.send(reply, {"failed": describe(error)})
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(0)

    # --- sandboxes --------------------------------------------------------------------------

    def _take_notes(self) -> None:
        received = messages.receive(self._notes)
        if received is None:
            return
        message, fds = received
        channel = socket.socket(fileno=fds[0])
        watched = Watched(
            message["watch"], channel, message["companions"], message["after"], message["name"]
        )
        if not _is_child(watched.pid):
            # It has ended. (What ended long ago may have had the id of one that is a child now.)
            self._end(watched, self._unclaimed.pop(watched.pid, _LOST))
            return
        self._watched[watched.pid] = watched
        self._selector.register(channel, selectors.EVENT_READ, ("channel", watched))
        if self._over:
            _kill(watched.pid)

    def _hear(self, watched: Watched) -> None:
        """A caller's channel: a signal for its process, or its end."""
        received = None
        assert watched.channel is not None
        with contextlib.suppress(OSError, ValueError):
            received = messages.receive(watched.channel)
        if received is not None:
            message, fds = received
            for descriptor in fds:
                os.close(descriptor)
            if "signal" in message and not watched.ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(watched.pid, int(message["signal"]))
            elif "leave" in message:  # it goes on without its caller
                self._drop_channel(watched)
            return
        self._drop_channel(watched)
        if not watched.ended:
            _kill(watched.pid)

    def _drop_channel(self, watched: Watched) -> None:
        if watched.channel is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(watched.channel)
            watched.channel.close()
            watched.channel = None

    def _tell(self, watched: Watched, message: dict[str, Any]) -> None:
        if watched.channel is not None:
            with contextlib.suppress(OSError):
                messages.send(watched.channel, message)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._jobs:
                follows = self._jobs.pop(pid).follows
                if follows is not None:
                    self._drop_channel(follows)
            elif pid in self._watched:
                self._end(self._watched.pop(pid), status, used.ru_utime + used.ru_stime)
            else:
                self._unclaimed[pid] = status
                while len(self._unclaimed) > _UNCLAIMED:
                    self._unclaimed.popitem(last=False)

    def _end(self, watched: Watched, status: int, cpu: float = 0.0) -> None:
        watched.ended = True
        code = os.waitstatus_to_exitcode(status)
        self._tell(watched, {"exit": code, "cpu": cpu})
        for companion in watched.companions:
            _kill(companion)
        if watched.after is None:
            self._tell(watched, {"gone": {}})
            self._drop_channel(watched)
            return
        name, args = watched.after
        message = {"job": name, "args": {**args, "status": code}, "where": "host"}
        mine, theirs = messages.pair()
        try:
            reply = watched.channel or theirs
            self._fork(self._find(name), message, [], reply, Job(None, follows=watched))
        except Exception as error:
            warn(f"{name} could not be started: {error}")
            self._drop_channel(watched)
        finally:
            mine.close()
            theirs.close()

    def _stop(self) -> None:
        """The client is gone: end everything of it."""
        self._over = True
        for watched in self._watched.values():
            _kill(watched.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _is_child(pid: int) -> bool:
    """Whether the process is a child of this one, dead or alive, that is not reaped yet."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def main(descriptor: int) -> None:
    """The program of the supervisor's process; `descriptor` is its channel to the client."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    received = messages.receive(channel)
    if received is None:
        return
    supervisor = Supervisor(channel, received[0])
    try:
        supervisor.settle()
    except BaseException as error:
        with contextlib.suppress(OSError):
            messages.send(channel, {"failed": describe(error)})
        return
    try:
        supervisor.serve()
    finally:
        room = received[0]["room"]
        with contextlib.suppress(OSError):
            linux.umount(room, linux.MNT_DETACH)
        with contextlib.suppress(OSError):
            Path(room).rmdir()
    sys.stderr.flush()
    os._exit(0)  # the client waits, and there is nothing left to tidy up
