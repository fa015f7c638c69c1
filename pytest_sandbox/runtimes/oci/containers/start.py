"""`run`: from a request to a sandbox, in the foreground or detached."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.store.owners import owner_of
from pytest_sandbox.oci.supervisor.spawn import fork
from pytest_sandbox.runtimes.oci.containers import JOBS
from pytest_sandbox.runtimes.oci.containers.folder import (
    REASON,
    Containers,
    new_id,
    remove_folder,
    write_record,
)
from pytest_sandbox.runtimes.oci.containers.host import Host
from pytest_sandbox.runtimes.oci.containers.reaching import to_group
from pytest_sandbox.runtimes.oci.containers.reaping import reap
from pytest_sandbox.runtimes.oci.containers.record import Record, shell_status
from pytest_sandbox.runtimes.oci.containers.spelling import is_odd, no_shell, spelled
from pytest_sandbox.runtimes.oci.foreground import Pipes, Signals, attend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.supervisor import Channel
    from pytest_sandbox.oci.supervisor.spawn import Child
    from pytest_sandbox.runtimes.oci.containers.request import Request
    from pytest_sandbox.runtimes.oci.foreground import Streams
    from pytest_sandbox.runtimes.oci.order import Order

TIMEOUT: Final = 124
_START: Final = "pytest_sandbox.runtimes.oci.launch:start"
_KEEP_LOG: Final = "pytest_sandbox.runtimes.oci.containers.log:keep"
_LIMIT_TIME: Final = "pytest_sandbox.runtimes.oci.containers.jobs:limit_time"


class Refused(Exception):
    """The command cannot be run: `status` is 126 or 127, `program` its name."""

    def __init__(self, status: int, program: str) -> None:
        super().__init__(status, program)
        self.status = status
        self.program = program


class Run:
    """One sandbox from its request to its start. A context: leaving it gives everything back that
    is not to stay.
    """

    def __init__(self, root: Path, request: Request, spawned: Child | None = None) -> None:
        """`root` is the store's folder; `spawned` the process that becomes the supervisor, which
        else is forked here.
        """
        self._request = request
        self._host = Host(
            root,
            engine=request.engine,
            snapshotter=request.snapshotter,
            lasting=request.detached,
        )
        self._host.begin(spawned or fork(JOBS))
        self._containers = Containers(root)
        self._folder: Path | None = None
        self._channel: Channel | None = None
        self._left = False
        self.id = new_id()
        self.notes: list[str] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()
        self._host.close()
        if self._folder is not None and not self._left:
            # Nothing is left, unless the supervisor was killed: then this does its work.
            with contextlib.suppress(SandboxError):
                reap(self._containers, self._host.store)
            self._host.close()
            remove_folder(self._folder)
            self._host.store.release(self.id)

    # --- before the start -------------------------------------------------------------------

    def image(self, pull: Callable[[Host, Request], Image]) -> Image:
        """Clear away what dead ones left; then the image, by `pull` if it is not in the store.

        Raises SandboxError.
        """
        request, store = self._request, self._host.store
        reap(self._containers, store)
        if request.name:
            self._containers.refuse_used(request.name)
        if request.pull != "always":
            from pytest_sandbox.oci.platforms import host_platform, normalise

            found = store.image(request.image, normalise(request.platform or host_platform()))
            if found is not None:
                store.touch(found)
                return found
        return pull(self._host, request)

    def _claim(self, image: Image) -> Record:
        request, host = self._request, self._host
        limits = host.limits(_limits(request), weak=request.weak)
        host.supervisor.start()
        record = Record(
            id=self.id,
            owner=owner_of(host.supervisor.pid),
            client=owner_of(),
            image=request.image.familiar,
            command=_command(request, image),
            created=time.time(),
            name=request.name,
            digest=image.digest,
            platform=str(image.platform),
            detached=request.detached,
            remove=request.remove,
            interactive=request.interactive,
            tty=request.tty,
            network=request.network,
            user=request.user or _configured(image, "User"),
            hostname=request.hostname or self.id[:12],
            engine=host.found.engine,
            rootless=host.supervisor.ids.rootless and not host.found.usable,
            cgroups_base=host.found.cgroups_base,
            room=host.supervisor.room,
            no_new_privileges=request.no_new_privileges,
            limits={**_limits(request), "weak": limits.weak},
            mounts=tuple(_shown(mount) for mount in request.mounts),
            timeout=request.timeout,
        )
        self._folder, listener = self._containers.claim(record)
        with listener:
            host.supervisor.listen(listener)
        host.store.use_layers(self.id, image.keys, record.owner)
        return record

    def _order(self, image: Image, record: Record, size: tuple[int, int]) -> Order:
        request, host = self._request, self._host
        argv, entrypoint = request.command, request.entrypoint
        if is_odd(record.command):
            argv, entrypoint = spelled(record.command), ()
        return host.order(
            image,
            self.id,
            init=host.found.init if request.init else "",
            argv=argv,
            entrypoint=entrypoint,
            env=request.env,
            user=request.user,
            cwd=request.cwd,
            tty=request.tty,
            size=size,
            hostname=record.hostname,
            network=request.network,
            ports=request.ports,
            mounts=request.mounts,
            tmpfs=dict(request.tmpfs),
            read_only=request.read_only,
            no_new_privileges=request.no_new_privileges,
            stop_signal=request.stop_signal,
            limits=host.limits(_limits(request), weak=request.weak),
            check=True,
            notes=(str(host.store.root / "uses" / f"{self.id}.json"),),
            record=str(self._folder),
            remove=request.remove,
        )

    def _begin(self, order: Order, descriptors: list[int]) -> Channel:
        extra = []
        if order.limits.weak:
            from pytest_sandbox.runtimes.oci.watcher import COUNTERS

            extra = [os.memfd_create("pytest-sandbox-counters", os.MFD_CLOEXEC)]
            os.pwrite(extra[0], bytes(COUNTERS.size), 0)
        try:
            supervisor = self._host.supervisor
            self._channel = supervisor.open(_START, order.document(), [*descriptors, *extra])
        finally:
            for descriptor in extra:
                os.close(descriptor)
        return self._channel

    def _running(self, record: Record, image: Image, told: Mapping[str, Any]) -> Record:
        """Note what the start told. Raises Refused, ProcessLookupError."""
        if "refused" in told and is_odd(record.command):
            raise no_shell(record.command)
        if "refused" in told:
            raise Refused(told["refused"], told["program"])
        from pytest_sandbox.oci.config import parse_image_config
        from pytest_sandbox.oci.spec.process import stop_signal, working_dir

        self.notes += told["notes"]
        config = parse_image_config(image.config)
        started = 0
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            started = owner_of(told["pid"]).started
        running = record._replace(
            cwd=working_dir(config, self._request.cwd),
            stop_signal=stop_signal(config, self._request.stop_signal),
            pid=told["pid"],
            pid_started=started,
            started=time.time(),
            ports=tuple(told["ports"]),
            env=tuple(told["env"]),
        )
        assert self._folder is not None
        with contextlib.suppress(FileNotFoundError):  # it has ended and was removed
            write_record(self._folder, running)
        return running

    # --- both ways --------------------------------------------------------------------------

    def foreground(self, image: Image, streams: Streams, signals: Signals) -> int:
        """Run it on our streams until its end; its exit status as a shell tells it."""
        request = self._request
        record = self._claim(image)
        order = self._order(image, record, getattr(streams, "size", (0, 0)))
        channel = self._begin(order, streams.theirs)
        streams.given()
        running = self._running(record, image, channel.result())
        status, late = attend(
            channel,
            streams,
            signals,
            group=to_group(self._host.supervisor, running.pid),
            timeout=request.timeout,
            expired=self._expired,
        )
        self._left = True
        return TIMEOUT if late else shell_status(status)

    def _expired(self) -> None:
        assert self._folder is not None
        with contextlib.suppress(FileNotFoundError):
            (self._folder / REASON).write_text("timeout", encoding="ascii")

    def detached(self, image: Image) -> str:
        """Start it and let go of it: its id."""
        from pytest_sandbox.runtimes.oci.containers import log

        request = self._request
        record = self._claim(image)
        assert self._folder is not None
        log.prepare(self._folder)
        order = self._order(image, record, (24, 80) if request.tty else (0, 0))
        pipes = Pipes(interactive=request.interactive and not request.tty, together=False)
        outputs = pipes.detach()
        try:
            if not request.tty:
                self._keep_log(outputs, 2)
            channel = self._begin(order, pipes.theirs)
            pipes.close()
            told = self._answer(channel) if request.tty else channel.result()
            self._running(record, image, told)
        finally:
            pipes.close()
            for descriptor in outputs:
                os.close(descriptor)
        if request.timeout is not None:
            words = {"pid": told["pid"], "seconds": request.timeout, "folder": str(self._folder)}
            with contextlib.closing(self._host.supervisor.open(_LIMIT_TIME, words)) as clock:
                clock.receive()
        self._left = True
        channel.leave()
        return self.id

    def _keep_log(self, descriptors: list[int], streams: int) -> None:
        """The keeper of the log runs when this returns; it needs nobody who listens."""
        words = {"folder": str(self._folder), "streams": streams}
        with contextlib.closing(
            self._host.supervisor.open(_KEEP_LOG, words, descriptors)
        ) as keeper:
            keeper.receive()

    def _answer(self, channel: Channel) -> dict[str, Any]:
        """The start's answer; the terminal that it says on the way goes to the log's keeper."""
        while (received := channel.receive()) is not None:
            message, descriptors = received
            if "done" in message:
                done: dict[str, Any] = message["done"]
                return done
            if "console" in message.get("said", {}):
                self._keep_log(descriptors, 1)
            for descriptor in descriptors:
                os.close(descriptor)
        return channel.result()


def _limits(request: Request) -> dict[str, Any]:
    wanted = {"memory": request.memory, "cpus": request.cpus, "pids": request.pids}
    return {name: value for name, value in wanted.items() if value is not None}


def _command(request: Request, image: Image) -> tuple[str, ...]:
    """For people: entrypoint and command."""
    section = image.config.get("config") or {}
    first = section.get("Entrypoint") if request.entrypoint is None else request.entrypoint
    rest = request.command
    if not rest and request.entrypoint is None:
        rest = section.get("Cmd") or ()
    return tuple(str(word) for word in (*(first or ()), *rest))


def _configured(image: Image, name: str) -> str:
    section = image.config.get("config") or {}
    return str(section.get(name) or "")


def _shown(mount: Any) -> str:
    return f"{mount.source}:{mount.target}{':ro' if mount.read_only else ''}"
