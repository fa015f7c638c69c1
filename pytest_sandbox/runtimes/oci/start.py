"""How one process starts sandboxes: its orders to the supervisor, and what comes of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes import shell
from pytest_sandbox.runtimes.control import Control, ControlLost
from pytest_sandbox.runtimes.live_system import LiveSystem
from pytest_sandbox.runtimes.oci import leavings, watcher
from pytest_sandbox.runtimes.oci.channel import PipeChannel
from pytest_sandbox.runtimes.oci.container import OciContainer
from pytest_sandbox.runtimes.oci.launchers.direct.command import Commands, Way
from pytest_sandbox.runtimes.oci.order import LimitOrder, MountOrder, Order
from pytest_sandbox.runtimes.run_folder import RunFolder
from pytest_sandbox.runtimes.shell import FOLDER, Facts
from pytest_sandbox.runtimes.streams import TailBuffer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.supervisor import Channel
    from pytest_sandbox.runtimes.base import Owner, SandboxSpec
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

_START: Final = "pytest_sandbox.runtimes.oci.launch:start"
_HOSTNAME: Final = "sandbox"
_PATIENCE: Final = 30.0
_KEPT: Final = 16
"""Orders of so many kinds are kept."""
_OVERHEAD: Final = 3
"""Init, the control shell and one worker do not count against the limit of processes (process 1
alone where that runs the commands).
"""


class Starts:
    """The starts of one runtime. What an order of a kind says is worked out and told once."""

    def __init__(self, runtime: OciRuntime) -> None:
        self._runtime = runtime
        self._folder = RunFolder()
        self._kinds: dict[str, Commands] = {}
        """What is known of the sandboxes of orders that a worker has had, by their kind."""
        self._orders: list[tuple[SandboxSpec, tuple[str, ...], str, Order]] = []

    def close(self) -> None:
        """No more are started."""
        self._folder.close()

    def start(self, spec: SandboxSpec, image: Image, name: str, owner: Owner) -> LiveSystem:
        """A running system. Raises what Runtime.start raises; nothing of it is left then."""
        direct = self._runtime.machine.launcher == "direct"
        shells = self._runtime.fast_path and not direct
        folder = self._folder.make(owner, name) if shells else None
        order = self._like_before(spec, image, name) if direct else None
        if order is None:
            order = self._order(spec, image, name, folder)
            # With the host's network, files of the sandbox are the host's of this moment.
            if direct and not spec.mounts and spec.network == "none":
                order = order._replace(kind=order.digest())
                self._orders.append((spec, image.keys, image.digest, order))
                del self._orders[:-_KEPT]
        try:
            return self._start(spec, order, folder, owner)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _like_before(self, spec: SandboxSpec, image: Image, name: str) -> Order | None:
        """The order of an earlier sandbox of the same kind, for a new one."""
        for before, keys, digest, order in self._orders:
            if (keys, digest) == (image.keys, image.digest) and before == spec:
                return order._replace(
                    id=name, folder=self._runtime.machine.folder(name), notes=self._notes(name)
                )
        return None

    def _notes(self, name: str) -> tuple[str, ...]:
        root = self._runtime.store.root
        return (str(root / "owners" / name), str(root / "uses" / f"{name}.json"))

    def _order(self, spec: SandboxSpec, image: Image, name: str, folder: Path | None) -> Order:
        machine = self._runtime.machine
        mounts = [MountOrder(str(m.source), m.target, m.read_only) for m in spec.mounts]
        if folder is not None:
            mounts.append(MountOrder(str(folder), FOLDER, own=True))
        limits = spec.limits
        return machine.order(
            image,
            name,
            user=spec.user,
            hostname=_HOSTNAME,
            network=spec.network,
            mounts=tuple(mounts),
            tmpfs=dict(spec.tmpfs),
            no_new_privileges=spec.no_new_privileges,
            limits=LimitOrder(
                memory=limits.memory,
                cpus=machine.quota(limits.cpus),
                pids=limits.pids + (1 if machine.launcher == "direct" else _OVERHEAD),
                nofile=limits.nofile,
                weak=machine.weak,
            ),
            hold=True,
            notes=self._notes(name),
        )

    def _start(
        self, spec: SandboxSpec, order: Order, folder: Path | None, owner: Owner
    ) -> LiveSystem:
        store = self._runtime.store
        leavings.note(store.root, order.id, owner)
        store.use_layers(order.id, [Path(layer).parent.name for layer in order.layers])
        counters = -1
        if order.limits.weak:
            counters = os.memfd_create("pytest-sandbox-counters")
            os.pwrite(counters, bytes(watcher.COUNTERS.size), 0)
        extra = [counters] if counters >= 0 else []
        try:
            if order.launcher == "direct":
                return self._start_direct(spec, order, extra)
            return self._start_held(spec, order, folder, extra)
        except BaseException:
            for descriptor in extra:  # no sandbox took it
                os.close(descriptor)
            leavings.forget_failed(store.root, order.id)
            raise

    def _start_direct(self, spec: SandboxSpec, order: Order, counters: list[int]) -> LiveSystem:
        """Process 1 runs the commands."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            channel, started = self._open(order, [null, null, null, *counters])
        finally:
            os.close(null)
        try:
            received = channel.receive(_PATIENCE)
        except OSError:
            received = None
        if received is None or not received[1]:
            channel.close()
            msg = f"a sandbox from {spec.image} ended as soon as it was started"
            raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor")
        said = TailBuffer()
        container = OciContainer(
            self._runtime,
            order,
            channel,
            started,
            said=said,
            counters=counters.pop() if counters else -1,
            control=messages.end_of(received[1][0]),
            commands=self._commands(order, received[0]["said"]),
        )
        return LiveSystem(
            container,
            spec,
            None,
            Facts(base=_variables(started)),
            said=said,
            folder=None,
            fast=True,
            disk=False,
            closed=self._runtime.forget,
        )

    def _commands(self, order: Order, said: Mapping[str, Any]) -> Commands:
        """How they are started, which is not said again for orders of a kind."""
        if "way" not in said:
            return self._kinds[order.kind]
        commands = Commands(Way(**said["way"]))
        if order.kind:
            self._kinds[order.kind] = commands
        return commands

    def _open(self, order: Order, fds: list[int]) -> tuple[Channel, dict[str, Any]]:
        if order.kind in self._kinds:
            channel, started = self._ask(order.short(), fds)
            if "unknown" not in started:
                return channel, started
            channel.close()
        return self._ask(order.document(), fds)

    def _ask(self, document: dict[str, Any], fds: list[int]) -> tuple[Channel, dict[str, Any]]:
        channel = self._runtime.supervisor.open(_START, document, fds)
        try:
            return channel, channel.result()
        except BaseException:
            channel.close()
            raise

    def _start_held(
        self, spec: SandboxSpec, order: Order, folder: Path | None, counters: list[int]
    ) -> LiveSystem:
        """A shell on our pipes holds it, and runs the commands."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        control = Control(PipeChannel(*ours), TailBuffer())
        try:
            try:
                channel, started = self._open(order, [*theirs, *counters])
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
        except BaseException:
            control.close()
            raise
        container = OciContainer(
            self._runtime,
            order,
            channel,
            started,
            said=control.said,
            counters=counters.pop() if counters else -1,
        )
        try:
            return self._meet(spec, container, control, started, folder)
        except BaseException:
            control.close()
            container.remove()
            raise

    def _meet(
        self,
        spec: SandboxSpec,
        container: OciContainer,
        control: Control,
        started: Mapping[str, Any],
        folder: Path | None,
    ) -> LiveSystem:
        base = _variables(started)
        facts, fast = Facts(base=base), False
        if started["shell"]:
            try:
                facts, fast = _probe(control, base), folder is not None
            except ControlLost as exc:
                text = control.said.value().decode("utf-8", "replace").strip()
                msg = f"a sandbox from {spec.image} ended as soon as it was started: {text[-600:]}"
                raise RuntimeUnavailable(msg, next_step="run pytest-sandbox doctor") from exc
        return LiveSystem(
            container,
            spec,
            control,
            facts,
            said=control.said,
            folder=folder,
            fast=fast,
            disk=False,
            closed=self._runtime.forget,
        )


def _probe(control: Control, base: Mapping[str, str]) -> Facts:
    """Learn what the control shell is. The FIFOs are on this kernel: they always reach in."""
    return shell.parse_probe(control.call(shell.probe(), 30.0), base)


def _variables(started: Mapping[str, Any]) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in started["env"])
