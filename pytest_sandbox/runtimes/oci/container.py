"""One sandbox of the oci runtime, as LiveSystem asks for it."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_sandbox.runtimes import shell
from pytest_sandbox.runtimes.base import Changes, PathStat, Stats
from pytest_sandbox.runtimes.oci import leavings, watcher, weak
from pytest_sandbox.runtimes.oci.agent import Agent
from pytest_sandbox.runtimes.oci.agent_command import AgentCommand
from pytest_sandbox.runtimes.oci.exec_command import OciExec
from pytest_sandbox.runtimes.oci.group_counters import GroupCounters
from pytest_sandbox.runtimes.oci.members import inner_pid, members
from pytest_sandbox.runtimes.shell import Counters

if TYPE_CHECKING:
    import contextlib
    import socket
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pytest_sandbox.oci.supervisor import Channel
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.oci.launchers.direct.command import Commands
    from pytest_sandbox.runtimes.oci.order import Order
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime
    from pytest_sandbox.runtimes.shell import Facts
    from pytest_sandbox.runtimes.streams import TailBuffer

_FILES: Final = "pytest_sandbox.runtimes.oci.file_jobs"
_USER: Final = "pytest_sandbox.runtimes.oci.user_job:look"
_END: Final = 30.0
"""A killed sandbox is gone within this many seconds, or its supervisor is not well."""


class OciContainer:
    """See the Engine protocol in live_system for what the methods mean."""

    def __init__(
        self,
        runtime: OciRuntime,
        order: Order,
        channel: Channel,
        started: Mapping[str, Any],
        *,
        said: TailBuffer,
        counters: int,
        control: socket.socket | None = None,
        commands: Commands | None = None,
    ) -> None:
        """`control` is the way to process 1 where that starts `commands`."""
        self.id = order.id
        self.order = order
        self.pid: int = started["pid"]
        self.env: list[str] = started["env"]
        self.created: list[str] = started["created"]
        self.notes: list[str] = started["notes"]
        self.layers = [Path(layer) for layer in order.layers]
        """The folders of its layers, the lowest first; a snapshot adds one."""
        self.upper = "upper"
        self.group: str = started["group"]
        self._user: dict[str, Any] = started["user"]
        self._agent: Agent | None = None
        self._image_layers = len(self.layers)
        self._runtime = runtime
        self._channel = channel
        self._said = said
        self._counters = counters
        self._lock = threading.Lock()
        self._exit: int | None = None
        self._cgroup: GroupCounters | None = None
        if control is not None and not order.rootless:
            self._cgroup = GroupCounters(runtime.machine.access.cgroups, self.group)
        if control is not None and commands is not None:
            unified = runtime.machine.access.cgroups.paths(self.group).unified
            self._agent = Agent(control, commands, unified, self._user_of)
        self._usage: dict[str, Any] = {}
        self._cleared = False
        self._lost = False
        self._removed = False
        self._full = 0
        self._told = 0
        self._exec_seconds = 0.0
        self._was_full = False

    @property
    def _top(self) -> int:
        """The process that all of the sandbox's are below (see members)."""
        return self.pid if self._agent is not None else self._runtime.supervisor.pid

    # --- its end ----------------------------------------------------------------------------

    def kill(self) -> None:
        self._channel.signal(signal.SIGKILL)

    def running(self) -> bool:
        self._hear(0.0)
        return self._exit is None

    def _hear(self, seconds: float, *, cleared: bool = False) -> None:
        """Take what the supervisor says, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while not (self._cleared if cleared else self._exit is not None):
                left = max(deadline - time.monotonic(), 0.0)
                try:
                    received = self._channel.receive(left)  # 0: what is there now
                except (TimeoutError, BlockingIOError):
                    return
                except OSError:
                    received = None
                if received is None:
                    self._exit = 137 if self._exit is None else self._exit
                    self._lost = not self._cleared
                    self._cleared = True
                    return
                message = received[0]
                if "exit" in message:
                    self._exit = int(message["exit"])
                elif "said" in message and "cleared" in message["said"]:
                    self._usage = message["said"]["cleared"]
                    self._cleared = True
                elif "gone" in message:
                    self._cleared = True

    def was_out_of_memory(self, seconds: float, patience: float = 0.0, known: int = 0) -> bool:
        del seconds  # kills are counted, and have no times
        if self.order.limits.weak:
            killed = self.counters().oom
        elif patience:
            self._hear(patience, cleared=True)
            killed = self._usage.get("oom_kills") or 0
        else:
            killed = self._runtime.usage(self.group).oom_kills or 0
        known = max(known, self._told)
        self._told = max(killed, self._told)
        return killed > known

    def counters(self) -> Counters:
        if self._counters < 0:
            return self._cgroup.read() if self._cgroup is not None else Counters()
        oom, pids, _ = watcher.COUNTERS.unpack(os.pread(self._counters, watcher.COUNTERS.size, 0))
        # The watcher looks now and then; a command that could not fork ends at once.
        full = weak.is_full(self.pid, self._top, self.order.limits)
        self._full += full and not self._was_full
        self._was_full = full
        return Counters(oom, pids + self._full)

    def remove(self) -> None:
        with self._lock:
            if self._removed:
                return
            self._removed = True
        self._channel.end()
        self._hear(_END, cleared=True)
        self._channel.close()
        if self._agent is not None:
            self._agent.close()
        if self._cgroup is not None:
            self._cgroup.close()
        if self._counters >= 0:
            os.close(self._counters)
        if self._lost:
            return  # its supervisor was killed: the notes say to the next run what is left
        self._runtime.store.release(self.id)
        leavings.forget(self._runtime.store.root, self.id)

    # --- commands ---------------------------------------------------------------------------

    def exec(self, job: Job, facts: Facts) -> OciExec | AgentCommand:
        if self._agent is not None:
            user = "" if job.user == self.order.user else job.user
            return AgentCommand(self._agent, job, user, said=self._said, spent=self._spend)
        base = dict(facts.base) or dict(entry.partition("=")[::2] for entry in self.env)
        env = {**base, **job.env}
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        nofile = min(self.order.limits.nofile or 1024, hard)
        rlimits = {"RLIMIT_NOFILE": nofile, **weak.rlimits(self.order.limits)}
        args = {
            "id": self.id,
            "pid": self.pid,
            "engine": self.order.engine,
            "rootless": self.order.rootless,
            "argv": shell.spelled(job.argv) if shell.has_odd_bytes(job.argv) else list(job.argv),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": job.cwd,
            "user": job.user,
            "tty": False,
            "no_new_privileges": self.order.no_new_privileges,
            "rlimits": {name: [value, value] for name, value in rlimits.items()},
        }
        supervisor = self._runtime.supervisor
        return OciExec(supervisor, job, args, said=self._said, spent=self._spend)

    def _user_of(self, name: str) -> dict[str, Any]:
        """Who that is in the sandbox now. Raises UnknownUser, InvalidImage, ConnectionError where
        the sandbox is gone.
        """
        args = {"pid": self.pid, "user": name}
        try:
            found: dict[str, Any] = self._runtime.supervisor.call(_USER, args, where="host")
        except FileNotFoundError:
            raise ConnectionResetError from None
        return found

    def _spend(self, seconds: float) -> None:
        with self._lock:
            self._exec_seconds += seconds

    def stats(self) -> Stats:
        if self.order.limits.weak or self.order.rootless:
            peak = 0
            if self._counters >= 0:
                data = os.pread(self._counters, watcher.COUNTERS.size, 0)
                peak = watcher.COUNTERS.unpack(data)[2]
            found = self._runtime.watched_stats(self.pid, peak)
            if self._agent is not None:
                return found
            # What the engine started in it is no child of its init.
            return replace(found, cpu_seconds=found.cpu_seconds + self._exec_seconds)
        usage = self._runtime.usage(self.group)
        return Stats(
            usage.memory_peak or usage.memory or 0,
            usage.cpu_seconds or 0.0,
            usage.bytes_written or 0,
        )

    # --- files ------------------------------------------------------------------------------

    def put(self, tar: IO[bytes], path: str) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        failed: list[BaseException] = []

        def feed() -> None:
            try:
                with open(writer, "wb") as out:  # noqa: PTH123
                    while chunk := tar.read(1 << 20):
                        out.write(chunk)
            except BrokenPipeError:
                pass  # the job says why
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=feed, name="pytest-sandbox-put", daemon=True)
        thread.start()
        try:
            args = {"pid": self.pid, "path": path}
            self._runtime.supervisor.call(f"{_FILES}:put", args, [reader], where="host")
        finally:
            os.close(reader)
            thread.join()
        if failed:
            raise failed[0]

    def get(self, path: str) -> tuple[PathStat, Iterable[bytes]]:
        found = self.stat(path)
        if found is None:
            msg = f"{path} does not exist in the sandbox"
            raise FileNotFoundError(msg)
        return found, self._read(path)

    def _read(self, path: str) -> Iterable[bytes]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        args = {"pid": self.pid, "path": path}
        try:
            channel = self._runtime.supervisor.open(f"{_FILES}:get", args, [writer])
        finally:
            os.close(writer)
        try:
            with open(reader, "rb", buffering=0) as source:  # noqa: PTH123
                while chunk := source.read(1 << 20):
                    yield chunk
            channel.result()
        finally:
            channel.close()

    def stat(self, path: str) -> PathStat | None:
        args = {"pid": self.pid, "path": path}
        found = self._runtime.supervisor.call(f"{_FILES}:stat", args, where="host")
        if not found:
            return None
        return PathStat(found["name"], found["size"], found["mode"], found["link"])

    def changes(self, mounted: Sequence[str]) -> Changes:
        args = {
            "layers": [str(layer) for layer in self.layers[: self._image_layers]],
            "uppers": [
                *(str(layer) for layer in self.layers[self._image_layers :]),
                str(Path(self.order.folder, self.upper)),
            ],
            "snapshotter": self.order.snapshotter,
            "created": self.created,
            "mounted": list(mounted),
        }
        found = self._runtime.supervisor.call(f"{_FILES}:changes", args, where="host")
        return Changes(*(tuple(found[kind]) for kind in ("added", "changed", "removed")))

    def snapshot(self, name: str | None, labels: Mapping[str, str], ours: Collection[int]) -> str:
        return self._runtime.snapshot(self, name, labels, ours)

    def grow(self, layer: Path, upper: str, created: list[str]) -> None:
        """What was the upper folder is `layer` now, and `upper` is on top of it, with mount points
        that were `created` in it.
        """
        self.layers.append(layer)
        self.created = created
        self.upper = upper

    def is_quiet(self, ours: Collection[int]) -> bool:
        """Whether no process is in it but those with the pids inside `ours`."""
        inside = (inner_pid(pid) for pid in members(self.pid, self._top))
        return set(inside) - {0} <= set(ours)

    def freeze(self) -> contextlib.AbstractContextManager[None]:
        """Stop every process of the sandbox for a while."""
        return self._runtime.frozen(self)
