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
import sys
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages, place
from pytest_sandbox.oci.supervisor.jobs import Call, describe, find_job, leave, perform, warn
from pytest_sandbox.oci.supervisor.workers import Pool, Worker, work

if TYPE_CHECKING:
    import socket

_UNCLAIMED: Final = 4096
_LOST: Final = int(signal.SIGKILL)
"""The status of a process whose end was not seen: as wait(2) gives it."""


class Watched:
    """A sandbox's first process, or another one whose end somebody waits for; `after` is the job
    that follows it.
    """

    def __init__(
        self, pid: int, channel: socket.socket, after: list[Any] | None, name: str
    ) -> None:
        self.pid = pid
        self.channel: socket.socket | None = channel
        self.after = after
        self.name = name
        self.ended = False
        self.followed = False
        """`after` is under way, or done."""


class Job(NamedTuple):
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
        self._ids: int | None = None
        self._setup = setup
        self._selector = selectors.DefaultSelector()
        self._jobs: dict[int, Job] = {}
        self._pool = Pool()
        self._watched: dict[int, Watched] = {}
        self._unclaimed: OrderedDict[int, int] = OrderedDict()
        self._clients = 0
        self._over = False
        self._notes, self._note = messages.pair()
        self._notes.setblocking(False)

    def settle(self) -> None:
        """Enter the namespaces and mount the room. Raises OSError."""
        self._ids = place.settle(self._main, self._setup)

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
        # Collecting would write to every page that children share, and find next to nothing.
        gc.freeze()
        gc.enable()
        messages.send(self._main, {"ready": os.getpid()})
        while not self._finished():
            for worker in self._pool.tired():
                self._dismiss(worker)
            for key, _ in self._selector.select(self._pool.patience()):
                # What came before it in this round may have closed it.
                if self._selector.get_map().get(key.fd) is key:
                    self._handle(key)
        self._pool.end()

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
        elif kind == "worker":
            self._hear_worker(what)
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
            listener = messages.end_of(fds[0])
            self._selector.register(listener, selectors.EVENT_READ, ("listen", listener))
        else:
            self._begin(client, message, fds)

    def _begin(self, client: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        reply = messages.end_of(fds[0])
        try:
            job = self._find(message["job"])
            self._run(job, message, fds[1:], reply, Job(client, int(message["number"])))
        except Exception as error:
            with contextlib.suppress(OSError):
                messages.send(reply, {"failed": describe(error)})
        finally:
            reply.close()
            for descriptor in fds[1:]:
                os.close(descriptor)

    def _find(self, name: str) -> Any:
        """A job. It is imported here, once: the children share it."""
        before = len(sys.modules)
        job = find_job(name)
        if len(sys.modules) > before:
            gc.freeze()
        return job

    def _run(
        self,
        job: Any,
        message: dict[str, Any],
        fds: list[int],
        reply: socket.socket,
        noted: Job,
    ) -> None:
        """Have a job done, by a worker that waits or by a fork. Raises OSError."""
        message["word"] = "done" if noted.follows is None else "gone"
        repeatable = hasattr(job, "repeatable") and message.get("where") != "mapped"
        while repeatable and (worker := self._pool.take(message["job"])) is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.give(message, reply, fds)
                self._jobs[worker.pid] = noted
                return
        if not repeatable:
            self._fork(message, fds, reply, noted)
            return
        mine, theirs = messages.pair()
        with theirs:
            worker = Worker(mine)
            worker.job = message["job"]
            worker.pid = self._fork(message, fds, reply, noted, theirs)
        self._selector.register(mine, selectors.EVENT_READ, ("worker", worker))

    def _fork(
        self,
        message: dict[str, Any],
        fds: list[int],
        reply: socket.socket,
        noted: Job,
        channel: socket.socket | None = None,
    ) -> int:
        """A child for one job; with a `channel` it does more of them."""
        pid = os.fork()
        if pid:
            self._jobs[pid] = noted
            return pid
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _die_with_parent()
            kept = [reply.fileno(), self._note.fileno(), *fds]
            kept += [self._ids] if self._ids is not None else []
            kept += [channel.fileno()] if channel else []
            # Another caller's channel must not stay open with a job that takes long.
            _close_all_but(kept)
            if self._do(message, reply, fds) and channel is not None:
                for descriptor in (reply.detach(), *fds):
                    os.close(descriptor)
                work(channel, self._do)
        except BaseException as error:
            with contextlib.suppress(OSError):
                messages.send(reply, {"failed": describe(error)})
        finally:
            leave()
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(0)

    def _enter(self) -> None:
        if self._ids is not None:
            place.enter(self._ids)
            self._ids = None
        _die_with_parent()

    def _do(self, message: dict[str, Any], reply: socket.socket, fds: list[int]) -> bool:
        """In a child: one job. Whether the child can do another one."""
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
        return perform(find_job(message["job"]), call, message["word"])

    def _hear_worker(self, worker: Worker) -> None:
        """It has done its job, or is gone."""
        received = None
        with contextlib.suppress(OSError, ValueError):
            received = messages.receive(worker.channel)
        if received is None:
            self._pool.forget(worker)
            self._dismiss(worker)
            return
        self._take_notes()
        self._done(self._jobs.pop(worker.pid, None))
        if not self._pool.put(worker):
            self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.channel)
        worker.channel.close()

    def _done(self, job: Job | None) -> None:
        if job is not None and job.follows is not None:
            self._drop_channel(job.follows)

    # --- sandboxes --------------------------------------------------------------------------

    def _take_notes(self) -> None:
        """Take every note that is there: a job's note comes before its end, and is read before it
        counts as done.
        """
        while True:
            try:
                received = messages.receive(self._notes)
            except BlockingIOError:
                return
            if received is None:
                return
            message, fds = received
            self._watch(message, messages.end_of(fds[0]))

    def _watch(self, message: dict[str, Any], channel: socket.socket) -> None:
        watched = Watched(
            message["watch"], channel, message["after"], message["name"]
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
            if "end" in message and not watched.ended:
                self._finish(watched)
            elif "signal" in message and not watched.ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(watched.pid, int(message["signal"]))
            elif "leave" in message:  # it goes on without its caller
                self._drop_channel(watched)
            return
        self._drop_channel(watched)
        if not watched.ended:
            _kill(watched.pid)

    def _finish(self, watched: Watched) -> None:
        """Kill it. What follows its end begins at once, with a pidfd of it to wait for."""
        try:
            process = os.pidfd_open(watched.pid)
        except OSError:  # no descriptor is free: what follows has to wait for its end
            _kill(watched.pid)
            return
        _kill(watched.pid)
        try:
            self._follow(watched, -int(signal.SIGKILL), [process])
        finally:
            os.close(process)

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
                self._take_notes()
                self._done(self._jobs.pop(pid))
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
        if watched.after is None:
            self._tell(watched, {"gone": {}})
            self._drop_channel(watched)
        elif not watched.followed:
            self._follow(watched, code, [])

    def _follow(self, watched: Watched, code: int, fds: list[int]) -> None:
        if watched.after is None:
            return
        watched.followed = True
        name, args = watched.after
        message = {"job": name, "args": {**args, "status": code}, "where": "host"}
        mine, theirs = messages.pair()
        try:
            reply = watched.channel or theirs
            self._run(self._find(name), message, fds, reply, Job(None, follows=watched))
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


def _close_all_but(kept: list[int]) -> None:
    """Close every descriptor of this process above 2 that is not among them."""
    low = 3
    for descriptor in sorted(set(kept)):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


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
    channel = messages.end_of(descriptor)
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
