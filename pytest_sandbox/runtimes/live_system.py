"""One running throwaway system, on any engine: the commands, their limits and their ends.

What only the engine can do stands behind `Engine`; everything else is the same for all of them.
"""

from __future__ import annotations

import contextlib
import posixpath
import secrets
import shutil
import threading
import time
from typing import IO, TYPE_CHECKING, Final, Protocol

from pytest_sandbox.errors import MissingDirectory
from pytest_sandbox.runtimes import shell
from pytest_sandbox.runtimes.base import Changes, PathStat, Result, Stats
from pytest_sandbox.runtimes.control import ControlLost
from pytest_sandbox.runtimes.control_sight import ControlSight
from pytest_sandbox.runtimes.ending import Ending
from pytest_sandbox.runtimes.job import Job
from pytest_sandbox.runtimes.killing import Hunt, kill_tree, now_in_ticks
from pytest_sandbox.runtimes.leftovers import LEFTOVERS
from pytest_sandbox.runtimes.shell import Counters, Facts
from pytest_sandbox.runtimes.workers import Pipes, Pool, WorkerLost, wait_for_report

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.runtimes.base import SandboxSpec
    from pytest_sandbox.runtimes.control import Control
    from pytest_sandbox.runtimes.streams import TailBuffer
    from pytest_sandbox.runtimes.workers import Worker

SETTLE: Final = 5.0
"""A worker must report within this many seconds after its command was killed."""


class ExecCommand(Protocol):
    """One command that the engine itself started."""

    def begin(self) -> bool: ...
    def watch(self, deadline: float | None, too_much: Callable[[], bool]) -> bool: ...
    def status(self) -> int: ...
    def running(self) -> bool: ...
    def pid(self) -> int: ...
    def kill(self) -> bool | None:
        """End all that it started, and say whether that is done; None: others have to."""
        ...

    def close(self) -> None: ...

    @property
    def full(self) -> bool:
        """It could not be started: the sandbox is full of processes."""
        ...

    @property
    def lost(self) -> bool:
        """The sandbox ended under it, for certain."""
        ...


class Engine(Protocol):
    """One container, as its engine has it."""

    id: str

    def kill(self) -> None:
        """End it at once; one that is gone is no error."""
        ...

    def running(self) -> bool: ...

    def was_out_of_memory(self, seconds: float, patience: float = 0.0, known: int = 0) -> bool:
        """Whether the memory limit killed something in the last `seconds`; with `patience` the
        container is ending, and only what ended it counts. The first `known` kills were told.
        """
        ...

    def counters(self) -> Counters:
        """What the engine counts where the sandbox itself cannot read its cgroup."""
        ...

    def exec(self, job: Job, facts: Facts) -> ExecCommand: ...
    def stats(self) -> Stats: ...
    def put(self, tar: IO[bytes], path: str) -> None: ...
    def get(self, path: str) -> tuple[PathStat, Iterable[bytes]]: ...
    def stat(self, path: str) -> PathStat | None: ...
    def changes(self, mounted: Sequence[str]) -> Changes: ...
    def snapshot(
        self, name: str | None, labels: Mapping[str, str], ours: Collection[int]
    ) -> str:
        """`ours` are the pids inside that belong to us and write no files."""
        ...

    def remove(self) -> None:
        """Remove it and everything of it."""
        ...


class LiveSystem:
    """What a runtime's `start` returns; see the System protocol for what the methods mean."""

    def __init__(
        self,
        engine: Engine,
        spec: SandboxSpec,
        control: Control | None,
        facts: Facts,
        *,
        said: TailBuffer,
        folder: Path | None,
        fast: bool,
        disk: bool,
        closed: Callable[[LiveSystem], None],
    ) -> None:
        self.id = engine.id
        self.spec = spec
        self.engine = engine
        self._stream = control
        # Without a shell in the image the stream only keeps the sandbox alive; without a stream
        # the engine has another way to run commands.
        self._control = control if facts.pid else None
        self.facts = facts
        self._folder = folder
        self._said = said
        self._disk = disk
        self._tell_closed = closed
        self._lock = threading.Lock()
        self._closed = False
        self._seen = Counters()
        self._execs: set[ExecCommand] = set()
        self._running = 0
        self._fast = fast
        self._pool: Pool | None = None
        if fast and folder is not None and control is not None:
            self._pool = Pool(control, facts, folder, "/bin/sh")
        self._ending = Ending(engine, spec.limits.timeout)

    @property
    def fast(self) -> bool:
        """Whether something in the sandbox (worker shells, process 1) runs the commands; else each
        is a real exec of the engine.
        """
        return self._fast

    # --- commands -----------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        input: bytes | None = None,
        log: Path | None = None,
        merge: bool = False,
    ) -> Result:
        if isinstance(argv, str):
            msg = f"argv is a list of words, not a string: run({argv.split()!r})"
            raise TypeError(msg)
        words = tuple(argv)
        if not words:
            msg = "argv is empty"
            raise ValueError(msg)
        self._ending.check()
        environment = {**self.spec.env, **(env or {})}
        for text in (*words, *environment, *environment.values(), cwd or ""):
            if "\0" in text:
                msg = f"{text!r}: a NUL byte cannot be part of an argument, a variable or a path"
                raise ValueError(msg)
        folder = posixpath.join("/", self.spec.cwd, cwd or "")
        job = Job(
            argv=words,
            env=environment,
            cwd=folder,
            user=user or self.spec.user,
            input=input,
            merge=merge,
            log=log,
            timeout=timeout,
        )
        with self._lock:
            self._running += 1
        try:
            if (
                self._pool is not None
                and job.user == self.spec.user
                and shell.fits_fast_path(words, environment, self.facts)
            ):
                return self._run_in_worker(job, self._pool)
            return self._run_by_exec(job)
        except ControlLost:
            raise self._ending.gone(job) from None
        finally:
            with self._lock:
                self._running -= 1
            job.log.close()

    def _run_in_worker(self, job: Job, pool: Pool) -> Result:
        assert self._folder is not None
        token = secrets.token_hex(8)
        try:
            worker = pool.take()
        except WorkerLost:
            return self._no_fork(job)
        usable = False
        pipes: Pipes | None = None
        try:
            pipes = Pipes(self._folder, token, job.merge, job.input)
            program = shell.command(
                token,
                job.argv,
                env=job.env,
                cwd=job.cwd,
                streams=pipes.streams,
                facts=self.facts,
            )
            counted = self.engine.counters()
            job.start()
            hunt = Hunt(since=now_in_ticks(), worker=worker.pid)
            try:
                worker.send(program)
                report = self._watch(worker, token, pipes, job, hunt)
            except WorkerLost:
                return self._worker_lost(job, hunt)
            except BaseException:
                # Cancelled (Ctrl-C, a test's timeout): nothing of the command goes on.
                self._kill(hunt)
                with contextlib.suppress(WorkerLost):
                    usable = self._settle(worker, token, pipes, job) is not None
                raise
            usable = report is not None
            if report is None:
                self._ending.end("its shell did not answer")
                raise self._ending.gone(job)
            for descriptor, capture in zip(list(pipes.descriptors), job.captures, strict=True):
                if pipes.drain(descriptor, capture):
                    pipes.hand_over(descriptor)
                    LEFTOVERS.add(descriptor, self._said)
            if report.status is None:
                msg = f"cwd {job.cwd!r} is no directory in the sandbox"
                raise MissingDirectory(msg)
            after = report.after + self.engine.counters()
            result = self._finish(job, report.status, report.before + counted, after)
            self._end_rest(result, Hunt(since=hunt.since, worker=hunt.worker))
            return result
        finally:
            if pipes is not None:
                pipes.close()
            pool.give_back(worker, usable and not self._closed)

    def _watch(
        self, worker: Worker, token: str, pipes: Pipes, job: Job, hunt: Hunt
    ) -> shell.Report | None:
        report = wait_for_report(
            worker,
            token,
            pipes,
            job.captures,
            deadline=self._deadline_of(job),
            too_much=self._too_much(job),
        )
        if report is not None:
            if job.most() > self.spec.limits.output:
                job.ended = "output"
            return report
        job.ended = "output" if job.most() > self.spec.limits.output else "time"
        self._kill(hunt)
        return self._settle(worker, token, pipes, job)

    @staticmethod
    def _settle(worker: Worker, token: str, pipes: Pipes, job: Job) -> shell.Report | None:
        return wait_for_report(
            worker,
            token,
            pipes,
            job.captures,
            deadline=time.monotonic() + SETTLE,
            too_much=lambda: False,
        )

    def _worker_lost(self, job: Job, hunt: Hunt) -> Result:
        """The worker ended without a word: the sandbox did, or the command killed its parent."""
        if not self.alive():
            raise self._ending.gone(job)
        before = self._seen
        self._kill(hunt)
        if self._ending.why:
            raise self._ending.gone(job)
        after, _ = self._counters()
        if after.oom == before.oom:
            job.captures[-1].feed(b"[pytest-sandbox: the command killed the shell that ran it]\n")
        return self._finish(job, 137, before, after)

    def _no_fork(self, job: Job) -> Result:
        """No worker could be started: nothing can be forked in the sandbox."""
        self._ending.check()
        after, _ = self._counters()
        job.start()
        job.captures[-1].feed(b"[pytest-sandbox: cannot fork: the sandbox is full of processes]\n")
        return self._finish(job, 126, Counters(after.oom, 0), after)

    def _run_by_exec(self, job: Job) -> Result:
        before, since = self._counters()
        job.start()
        command = self.engine.exec(job, self.facts)
        self._execs.add(command)
        try:
            ended = command.begin() or command.watch(self._deadline_of(job), self._too_much(job))
            if not ended:
                job.ended = "output" if self._too_much(job)() else "time"
                self._kill_exec(command, since)
                command.watch(time.monotonic() + SETTLE, lambda: False)
            elif self._too_much(job)():
                job.ended = "output"
            status = command.status()
            if command.full:
                return self._no_fork(job)
            if job.ended != "time" and (command.lost or not self.alive()):
                raise self._ending.gone(job)
            after = self._counters()[0] if job.ended != "time" else before
            result = self._finish(job, status, before, after)
            if result.limit is not None and command.kill() is None:
                self._end_rest(result, Hunt(since=since))
            return result
        except BaseException:
            if command.running():
                self._kill_exec(command, since)
            raise
        finally:
            self._execs.discard(command)
            command.close()

    def _kill_exec(self, command: ExecCommand, since: int) -> None:
        done = command.kill()
        if done is None:
            self._kill(Hunt(since=since, root=command.pid(), by_exec=True))
        elif not done:
            self._ending.end("a command that had to end could not be ended")

    def _too_much(self, job: Job) -> Callable[[], bool]:
        return lambda: job.most() > self.spec.limits.output

    def _counters(self) -> tuple[Counters, int]:
        if self._control is None:
            return self.engine.counters(), 0
        seen, now = shell.parse_counters(self._control.call(shell.read_counters(self.facts)))
        return seen + self.engine.counters(), now

    def _deadline_of(self, job: Job) -> float:
        end = self._ending.deadline
        return end if job.deadline is None else min(job.deadline, end)

    def _kill(self, hunt: Hunt) -> None:
        """End a command's tree; where that fails, the sandbox ends."""
        done = False
        if self._control is not None:
            with contextlib.suppress(ControlLost):
                done = kill_tree(
                    ControlSight(self._control),
                    hunt,
                    ours=self._own_pids,
                    other_workers=lambda: (
                        (self._pool.busy() - {hunt.worker}) if self._pool else set()
                    ),
                    other_roots=lambda: {c.pid() for c in list(self._execs)} - {0, hunt.root},
                )
        if not done:
            self._ending.end("a command that had to end could not be ended")

    def _own_pids(self) -> set[int]:
        return {1, self.facts.pid, *(self._pool.pids() if self._pool else ())}

    def _finish(self, job: Job, status: int, before: Counters, after: Counters) -> Result:
        limit = job.ended
        self._seen = Counters(max(after.oom, self._seen.oom), max(after.pids, self._seen.pids))
        self._ending.told = self._seen.oom
        if self._control is None and status == 137 and limit is None:
            seconds = time.monotonic() - job.began
            if self.engine.was_out_of_memory(seconds, known=before.oom):
                limit = "memory"
        if limit is None and after.oom > before.oom and (status or self._running == 1):
            limit = "memory"
        if limit is None and status and after.pids > before.pids:
            limit = "pids"
        full = b"No space left on device"
        if limit is None and status and self._disk and full in job.stderr()[-4096:]:
            limit = "disk"
        if limit == "time":
            raise self._ending.timeout(job, status)
        return job.result(status, limit)

    def _end_rest(self, result: Result, hunt: Hunt) -> None:
        """When a limit ended a command, nothing of it goes on."""
        if result.limit is not None and self._control is not None:
            self._kill(hunt)

    def begin(self, spec: SandboxSpec) -> bool:
        # The streams of a main process that ended are at their end: nothing has to be asked.
        silent = self._stream is not None and self._stream.silent()
        if self._closed or self._ending.why or not (silent or self.alive()):
            return False
        self.spec = spec
        self._ending.begin(spec.limits.timeout)
        return True

    # --- its end ------------------------------------------------------------------------------

    def alive(self) -> bool:
        if self._closed or self._ending.why or self._ending.struck:
            return False
        if self._control is not None:
            try:
                self._control.call(b":")
            except ControlLost:
                return False
            return True
        return self.engine.running()

    def close(self) -> None:
        if self._ending.foreign:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._ending.close()
        try:
            self.engine.remove()
        finally:
            if self._stream is not None:
                self._stream.close()
            if self._pool is not None:
                self._pool.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._tell_closed(self)

    # --- files --------------------------------------------------------------------------------

    def put(self, tar: IO[bytes], path: str) -> None:
        self._ending.check()
        self.engine.put(tar, path)

    def get(self, path: str) -> tuple[PathStat, Iterable[bytes]]:
        self._ending.check()
        return self.engine.get(path)

    def stat(self, path: str) -> PathStat | None:
        self._ending.check()
        return self.engine.stat(path)

    def changes(self) -> Changes:
        self._ending.check()
        mounted = [mount.target for mount in self.spec.mounts]
        return self.engine.changes([*mounted, *self.spec.tmpfs])

    def snapshot(self, *, name: str | None = None, labels: Mapping[str, str] | None = None) -> str:
        self._ending.check()
        return self.engine.snapshot(name, labels or {}, self._own_pids())

    # --- what it says -------------------------------------------------------------------------

    def logs(self) -> str:
        return self._said.value().decode("utf-8", "replace")

    def stats(self) -> Stats:
        self._ending.check()
        if self._control is None or not self.facts.cgroups:
            return self.engine.stats()
        try:
            return Stats(*shell.parse_stats(self._control.call(shell.read_stats(self.facts))))
        except ControlLost:
            raise self._ending.gone(None) from None
