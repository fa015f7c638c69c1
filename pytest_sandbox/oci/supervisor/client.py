"""The client's side of the supervisor."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci.ids import IdSpace, NoIds, Range
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import JobFailed, rebuild
from pytest_sandbox.oci.supervisor.rooms import make_room
from pytest_sandbox.oci.supervisor.spawn import Child, spawn
from pytest_sandbox.oci.waiting import ended

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

Where = Literal["host", "mapped"]

_CANCEL: Final = 5.0
"""Seconds that a job which was killed may take to be gone."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Channel:
    """What a job says, message by message; closing it ends what the job left to the supervisor."""

    def __init__(self, end: socket.socket, job: str) -> None:
        self._end = end
        self._job = job
        self._early: deque[tuple[dict[str, Any], list[int]]] = deque()

    def fileno(self) -> int:
        """For select and poll."""
        return self._end.fileno()

    def wait(self, timeout: float | None, beside: int) -> bool | None:
        """Whether there is something to receive: False for something to read from the descriptor
        `beside` alone (-1: none), None after `timeout` seconds without either.
        """
        if self._early:
            return True
        poller = select.poll()
        poller.register(self._end, select.POLLIN)
        if beside >= 0:
            poller.register(beside, select.POLLIN)
        found = poller.poll(None if timeout is None else timeout * 1000)
        return any(number == self._end.fileno() for number, _ in found) if found else None

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], list[int]] | None:
        """The next message (`said`, `done`, `exit` or `gone`) with its descriptors; None when there
        will be no more. Raises what the job raised, and TimeoutError after `timeout` seconds.
        """
        if self._early:
            return self._early.popleft()
        return self._next(timeout)

    def _next(self, timeout: float | None) -> tuple[dict[str, Any], list[int]] | None:
        self._end.settimeout(timeout)
        received = messages.receive(self._end)
        if received is not None and "failed" in received[0]:
            raise rebuild(received[0]["failed"], self._job)
        return received

    def result(self) -> dict[str, Any]:
        """Wait for the job's own answer; what else is said stays for `receive`."""
        while (received := self._next(None)) is not None:
            if "done" in received[0]:
                done: dict[str, Any] = received[0]["done"]
                return done
            self._early.append(received)
        what = f"{self._job.partition(':')[2]} ended without an answer"
        raise JobFailed(what, next_step="look whether the machine is out of memory")

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the job's process is gone, at most so many seconds."""
        until = time.monotonic() + seconds
        with contextlib.suppress(Exception):  # what it says now is for nobody
            while (received := self._next(max(until - time.monotonic(), 0.001))) is not None:
                for descriptor in received[1]:
                    os.close(descriptor)

    def signal(self, number: int) -> None:
        """Signal the process that the job left to the supervisor."""
        with contextlib.suppress(OSError):
            messages.send(self._end, {"signal": number})

    def end(self) -> None:
        """Kill that process; what follows its end begins at once, and says when it is done."""
        with contextlib.suppress(OSError):
            messages.send(self._end, {"end": True})

    def leave(self) -> None:
        """Let that process go on without this channel."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is over already
            messages.send(self._end, {"leave": True})

    def close(self) -> None:
        """End it."""
        self._end.close()


class Supervisor:
    """One supervisor process and the way to it; started with the first job."""

    def __init__(
        self,
        ids: IdSpace | Callable[[], IdSpace],
        *,
        lasting: bool = False,
    ) -> None:
        """`lasting`: it outlives this process, until its last sandbox is gone."""
        self._given = ids
        self._lasting = lasting
        self._lock = threading.RLock()
        self.spawned: Child | None = None
        """Its process, where that was made before it starts."""
        self._process: Child | None = None
        self._socket: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._owner = 0
        self.room = ""
        self.pid = 0

    @classmethod
    def connected(cls, end: socket.socket) -> Supervisor:
        """Another process's supervisor, through a socket of its listener. Closing does not end it.

        Its ids are not known here.
        """

        def unknown() -> IdSpace:
            msg = "the ids of another process's supervisor"
            raise NoIds(msg, problem="not-ours", next_step="ask the process that started it")

        found = cls(unknown, lasting=True)
        found._socket, found._owner = end, os.getpid()
        return found

    @property
    def ids(self) -> IdSpace:
        """The ids that its jobs and sandboxes have. Raises NoIds."""
        if isinstance(self._given, IdSpace):  # known: nobody waits for a start that is under way
            return self._given
        with self._lock:
            if not isinstance(self._given, IdSpace):
                self._given = self._given()
            return self._given

    # --- jobs -------------------------------------------------------------------------------

    def call(
        self,
        job: str,
        args: Mapping[str, Any],
        fds: Sequence[int] = (),
        *,
        where: Where = "mapped",
    ) -> dict[str, Any]:
        """Run a job to its end and return its answer. Raises what the job raised."""
        number, channel = self._begin(job, args, fds, where)
        try:
            return channel.result()
        except BaseException as error:
            if not isinstance(error, Exception):  # interrupted: nor must it go on
                self._cancel(number)
                channel.wait_for_end(_CANCEL)
            raise
        finally:
            channel.close()

    def open(
        self,
        job: str,
        args: Mapping[str, Any],
        fds: Sequence[int] = (),
        *,
        where: Where = "host",
    ) -> Channel:
        """Begin a job that says more than one thing, or leaves a process behind."""
        return self._begin(job, args, fds, where)[1]

    def _begin(
        self, job: str, args: Mapping[str, Any], fds: Sequence[int], where: Where
    ) -> tuple[int, Channel]:
        main = self._connection()
        mine, theirs = messages.pair()
        number = next(self._numbers)
        message = {"job": job, "args": dict(args), "where": where, "number": number}
        try:
            with self._lock:
                messages.send(main, message, [theirs.fileno(), *fds])
        except OSError as exc:
            mine.close()
            raise self._lost() from exc
        finally:
            theirs.close()
        return number, Channel(mine, job)

    def _cancel(self, number: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                messages.send(self._socket, {"cancel": number})

    def start(self) -> None:
        """Start it now, and not with the first job. Raises NoIds, RuntimeUnavailable."""
        self._connection()

    def listen(self, listener: socket.socket) -> None:
        """Let others reach the supervisor through a listening SEQPACKET socket."""
        with self._lock:
            messages.send(self._connection(), {"listen": True}, [listener.fileno()])

    # --- its life ---------------------------------------------------------------------------

    def _connection(self) -> socket.socket:
        with self._lock:
            if self._socket is not None and self._owner != os.getpid():
                self._socket = None  # a fork of the client starts its own
            if self._socket is None:
                self._start()
            assert self._socket is not None
            return self._socket

    def _start(self) -> None:
        ids = self.ids
        child, self.spawned = self.spawned or spawn(), None
        try:
            self.room = make_room(child.pid)
            setup = {
                "lasting": self._lasting,
                "rootless": ids.rootless,
                "room": self.room,
                "uids": ids.uids,
                "gids": ids.gids,
                "client": os.getpid(),
            }
            with contextlib.suppress(OSError):  # it died: its log says why
                messages.send(child.end, setup)
            while True:
                received = messages.receive(child.end)
                if received is None:
                    os.lseek(child.log, 0, os.SEEK_SET)
                    text = os.read(child.log, 4096).decode("utf-8", "replace").strip()
                    msg = f"the supervisor of sandboxes did not start: {text[-600:] or 'no word'}"
                    raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor")
                message = received[0]
                if "failed" in message:
                    raise _not_started(rebuild(message["failed"], "start:start"))
                if "map" in message:
                    write_maps(message["map"], ids)
                    messages.send(child.end, {"go": True})
                elif "ready" in message:
                    break
        except BaseException:
            child.end.close()
            child.kill()
            child.wait()
            if self.room:
                with contextlib.suppress(OSError):
                    Path(self.room).rmdir()
            raise
        finally:
            os.close(child.log)
        self._process, self._socket, self._owner = child, child.end, os.getpid()
        self.pid = child.pid

    def _lost(self) -> RuntimeUnavailable:
        self.close()  # the next job starts another one
        return RuntimeUnavailable(
            "the supervisor of sandboxes is gone", next_step="look whether it was killed"
        )

    def close(self) -> None:
        """End it, and with it every sandbox and mount that it holds (not a lasting one's)."""
        with self._lock:
            connection, self._socket = self._socket, None
            process, self._process = self._process, None
        if connection is not None:
            connection.close()
        if process is None or self._owner != os.getpid():
            return
        if self._lasting:
            return  # it goes on
        if not ended(process.pid, 20):
            process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            Path(self.room).rmdir()


def _not_started(error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        msg = f"no namespaces for sandboxes can be made: {error}"
        return RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor: it says why")
    return error


def write_maps(pid: int, ids: IdSpace) -> None:
    """Write the id maps of another process's new user namespace, with newuidmap and newgidmap.

    Raises NoIds.
    """
    import shutil
    import subprocess

    for name, ranges in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")
        if program is None:
            msg = f"{name} is not installed: an ordinary user cannot have ids for sandboxes"
            raise NoIds(msg, problem="no-newuidmap", next_step="apt-get install uidmap")
        words = [str(number) for entry in ranges for number in Range(*entry)]
        done = subprocess.run([program, str(pid), *words], capture_output=True, check=False)
        if done.returncode:
            text = done.stderr.decode("utf-8", "replace").strip()
            msg = f"{name} refused: {text}"
            step = "look at /etc/subuid and /etc/subgid, and whether newuidmap is setuid root"
            raise NoIds(msg, problem="newuidmap-refused", next_step=step)
