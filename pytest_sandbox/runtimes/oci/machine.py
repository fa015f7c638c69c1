"""What this machine gives for sandboxes without a daemon: looked for once, tried, not guessed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci.findings import Finding
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.probes import probe_all
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor
from pytest_sandbox.runtimes.base import RuntimeInfo
from pytest_sandbox.runtimes.oci.elsewhere import need_linux
from pytest_sandbox.runtimes.oci.order import Order
from pytest_sandbox.targets import arch_from_machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.cgroup_access import Access
    from pytest_sandbox.oci.engines import Engine, Init
    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.probes import Host

_CONTROLLERS: Final = {"memory": "memory", "cpu": "cpus", "pids": "pids"}


@dataclass
class Machine:
    """Engine, init, store, cgroups and snapshotter. `weak` names the limits that no cgroup sets."""

    engine: Engine
    init: Init
    supervisor: Supervisor
    store: Store
    access: Access
    snapshotter: str
    launcher: str = "engine"
    """What starts sandboxes: `direct`, or the `engine`."""
    problems: tuple[str, ...] = ()
    """What does not work here, though sandboxes do."""

    @property
    def weak(self) -> tuple[str, ...]:
        """The limits that processes have to be held to by weaker means (see weak.py)."""
        return tuple(
            limit for name, limit in _CONTROLLERS.items() if name not in self.access.usable
        )

    @property
    def cpus(self) -> int:
        """CPUs that this process may use."""
        return len(os.sched_getaffinity(0))

    def quota(self, cpus: float) -> float | None:
        """What a limit of so many CPUs comes to; None where that is all that the machine has.

        A quota of them all bounds nothing; but who has used it up waits for the next period, of
        0.1 s, be it to die.
        """
        if cpus >= (os.cpu_count() or 1) <= self.cpus:
            return None
        return min(cpus, self.cpus)

    def folder(self, name: str) -> str:
        """Where the files of the sandbox `name` are."""
        return str(self.store.root / "sandboxes" / name)

    def order(self, image: Image, name: str, **values: Any) -> Order:
        """An Order for one sandbox from an image of the store."""
        ids = self.supervisor.ids
        launcher = "engine" if values.get("tty") else self.launcher
        return Order(
            id=name,
            engine=str(self.engine.path),
            init=str(self.init.path),
            snapshotter=self.snapshotter,
            layers=tuple(str(self.store.layer(key).diff) for key in image.keys),
            folder=self.folder(name),
            config=dict(image.config),
            uids=tuple((r.inside, r.outside, r.size) for r in ids.uids),
            gids=tuple((r.inside, r.outside, r.size) for r in ids.gids),
            cgroups_base=self.access.cgroups.base,
            # An engine of root's makes its group itself, with or without limits.
            rootless=not self.access.usable and (ids.rootless or launcher == "direct"),
            launcher=launcher,
            filters=str(self.store.root / "filters"),
            **values,
        )

    def info(self) -> RuntimeInfo:
        """For doctor and the header."""
        layout = str(self.access.cgroups.layout)
        notes = [f"{self.engine.name} {self.engine.text} at {self.engine.path}"]
        if self.launcher == "direct":
            notes.insert(0, "the direct launcher starts sandboxes: its self-test passed")
        notes += self.problems
        notes.append(f"ids of sandboxes: {self.supervisor.ids.source}")
        if self.weak:
            notes.append(f"weaker limits for {', '.join(self.weak)}: {self.access.what}")
        notes.append("no limit on the disk of a sandbox")
        return RuntimeInfo(
            name="oci",
            version=self.engine.text,
            endpoint=str(self.engine.path),
            rootless=self.supervisor.ids.rootless,
            cgroups=layout,
            arches=_arches(),
            cpus=self.cpus,
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            storage=self.snapshotter,
            disk_limit=False,
            notes=tuple(notes),
            engine=self._starts(),
            weak_limits=self.weak,
            weak_why=self.access.what if self.weak else "",
            weak_step=self.access.next_step if self.weak else "",
        )

    def _starts(self) -> str:
        """What starts sandboxes, in a word or two."""
        if self.launcher == "direct":
            return "direct"
        return f"{self.engine.name} {self.engine.text}"

    def close(self) -> None:
        """End the supervisor, and every sandbox with it."""
        self.supervisor.close()


def find_machine(
    root: Path,
    *,
    engine: str,
    snapshotter: str,
    environ: Mapping[str, str],
    lasting: bool = False,
    launcher: str = "engine",
) -> Machine:
    """Try everything that is needed, once a boot. Raises RuntimeUnavailable for what is not there.

    With `engine`, the one that was asked for, and no other.
    """
    need_linux()
    supervisor = Supervisor(find_ids, lasting=lasting)
    try:
        supervisor.ids  # noqa: B018 - without ids nothing works: it is told here
        store = Store(root, supervisor, snapshotter)
        host = probe_all(store, engine=engine, snapshotter=snapshotter, environ=environ)
        machine = _machine_of(host, supervisor, store)
    except BaseException:
        supervisor.close()
        raise
    if launcher in {"auto", "direct"}:
        try:
            _choose_direct(machine, wanted=launcher == "direct")
        except BaseException:
            supervisor.close()
            raise
    return machine


def _machine_of(host: Host, supervisor: Supervisor, store: Store) -> Machine:
    """From what was found. Raises Lacking where sandboxes cannot run."""
    found, init, access = host.tools()
    notes = tuple(one.what for one in host.findings if not one.ok)
    return Machine(found, init, supervisor, store, access, host.snapshotter, problems=notes)


def try_launcher(host: Host, supervisor: Supervisor, store: Store) -> Finding:
    """The direct launcher's self-test, made anew, for doctor. Raises Lacking."""
    from pytest_sandbox.runtimes.oci.launchers.attacks import ATTACKS
    from pytest_sandbox.runtimes.oci.launchers.direct.trial import tried

    trial = tried(_machine_of(host, supervisor, store), fresh=True)
    if trial.passed:
        what = f"the direct launcher starts sandboxes, and {len(ATTACKS)} attacks from inside fail"
        return Finding("direct", True, what)
    what = f"the direct launcher is not used: {trial.why}"
    return Finding("no-direct", False, what, trial.next_step)


def _choose_direct(machine: Machine, *, wanted: bool) -> None:
    """Take the direct launcher where its self-test passes. Raises RuntimeUnavailable where it does
    not, but was asked for.
    """
    from pytest_sandbox.runtimes.oci.launchers.direct.trial import tried

    trial = tried(machine)
    if trial.passed:
        machine.launcher = "direct"
    elif wanted:
        msg = f"the direct launcher cannot be used: {trial.why}"
        raise RuntimeUnavailable(msg, next_step=trial.next_step)
    else:
        machine.problems += (f"not the direct launcher: {trial.why}",)


def _arches() -> tuple[str, ...]:
    """This machine's architecture, and those that binfmt_misc runs."""
    own = arch_from_machine(os.uname().machine)
    others = []
    for arch, name in (("amd64", "x86_64"), ("arm64", "aarch64")):
        entry = Path("/proc/sys/fs/binfmt_misc", f"qemu-{name}")
        try:
            text = entry.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        # Without the flag F the interpreter would have to be in the image.
        flags = next((line for line in text.splitlines() if line.startswith("flags:")), "")
        if arch != own and text.startswith("enabled") and "F" in flags:
            others.append(arch)
    return (own, *others)
