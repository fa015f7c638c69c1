"""The direct launcher's self-test: a sandbox is started, and from inside it every attack is tried.

It is run once per boot; what it found is kept beside the store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.lifetimes import boot_id
from pytest_sandbox.oci.store.files import read_json, write_json
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.launchers.direct import hands, privileges, program
from pytest_sandbox.runtimes.oci.launchers.direct.command import Command, Kind, Way, Wish
from pytest_sandbox.runtimes.oci.launchers.direct.staging import FIRST_GROUP, GROUP
from pytest_sandbox.runtimes.oci.launchers.direct.tables import (
    NOBODY,
    Table,
    capability_sets,
    given,
)
from pytest_sandbox.runtimes.oci.order import INTERPRETED, LimitOrder, Order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_sandbox.runtimes.oci.machine import Machine

FORMAT: Final = 3
"""Part of what a kept answer is valid for: raise it when the launcher or the attacks change."""
_FILE: Final = "launcher.json"
_START: Final = "pytest_sandbox.runtimes.oci.launch:start"
_MEMORY: Final = 256 << 20
_PIDS: Final = 128
_PATIENCE: Final = 120.0


@dataclass(frozen=True, slots=True)
class Trial:
    """How it went; `why` is empty where the launcher can be used, `next_step` what would help."""

    why: str = ""
    next_step: str = ""

    @property
    def passed(self) -> bool:
        """Whether the launcher can be used here."""
        return not self.why


def tried(machine: Machine, *, fresh: bool = False) -> Trial:
    """What is known of this boot, or found out now. `fresh` tries again."""
    file = machine.store.root / _FILE
    key = _key(machine)
    kept = None if fresh else read_json(file)
    if kept is not None and kept.get("key") == key:
        with contextlib.suppress(TypeError, KeyError):
            return Trial(**kept["trial"])
    found = _try(machine)
    if found.passed:  # what failed is looked at again: the next step may have been taken
        write_json(file, {"key": key, "trial": asdict(found)})
    return found


def _key(machine: Machine) -> dict[str, Any]:
    """As JSON gives it back."""
    ids = machine.supervisor.ids
    return {
        "format": FORMAT,
        "boot": boot_id(),
        "kernel": os.uname().release,
        "ids": [[list(entry) for entry in side] for side in (ids.uids, ids.gids)],
        "groups": [machine.access.cgroups.base, sorted(machine.access.usable)],
        "snapshotter": machine.snapshotter,
    }


def _try(machine: Machine) -> Trial:
    step = "use --sandbox-launcher=runc, and report what pytest-sandbox doctor says"
    try:
        with _root(machine) as layer, _world() as outside:
            possible = _attack(machine, layer, outside)
    except (SandboxError, OSError) as wrong:
        what = wrong.what if isinstance(wrong, SandboxError) else str(wrong)
        return Trial(f"it cannot start a sandbox here: {what}", step)
    if possible:
        return Trial(f"its sandboxes do not hold on this kernel: {'; '.join(possible)}", step)
    return Trial()


@contextlib.contextmanager
def _root(machine: Machine) -> Iterator[Path]:
    """An all but empty root file system that belongs to the sandboxes' root."""
    ids = machine.supervisor.ids
    with machine.store.work() as work:  # what a killed process leaves of it is swept
        layer = work.folder / "layer"
        for folder in (layer, *(layer / name for name in ("proc", "dev", "sys", "tmp"))):
            folder.mkdir()
            folder.chmod(0o755)
            if os.geteuid() == 0:
                os.chown(folder, ids.uids[0].outside, ids.gids[0].outside)
        yield layer
    machine.store.empty_trash(keep=machine.store.uses.living()[0])


@contextlib.contextmanager
def _world() -> Iterator[dict[str, Any]]:
    """What must not be reached from inside: a port of the host's loopback, an abstract socket."""
    name = f"pytest-sandbox-{secrets.token_hex(8)}"
    with socket.socket() as port, socket.socket(socket.AF_UNIX) as abstract:
        port.bind(("127.0.0.1", 0))
        abstract.bind(f"\0{name}")
        for end in (port, abstract):
            end.listen(8)
        yield {"ports": [port.getsockname()[1]], "sockets": [name]}


def _attack(machine: Machine, layer: Path, outside: dict[str, Any]) -> list[str]:
    ids = machine.supervisor.ids
    name = f"ps-trial-{os.getpid()}-{secrets.token_hex(4)}"
    order = Order(
        id=name,
        engine=str(machine.engine.path),
        init="",
        snapshotter=machine.snapshotter,
        layers=(str(layer),),
        folder=str(layer.parent / "sandbox"),
        config={"architecture": "", "os": "linux", "config": {"Cmd": ["none"]}},
        uids=tuple((r.inside, r.outside, r.size) for r in ids.uids),
        gids=tuple((r.inside, r.outside, r.size) for r in ids.gids),
        hostname="trial",
        limits=LimitOrder(memory=_MEMORY, pids=_PIDS, weak=machine.weak),
        cgroups_base=machine.access.cgroups.base,
        rootless=not machine.access.usable,
        hold=True,
        launcher=INTERPRETED,
        filters=str(machine.store.root / "filters"),
    )
    with contextlib.ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        counters = os.memfd_create("pytest-sandbox-trial")
        stack.callback(os.close, counters)
        fds = [null, null, null, *([counters] if machine.weak else [])]
        channel = machine.supervisor.open(_START, order.document(), fds)
        stack.callback(channel.close)
        channel.result()
        received = channel.receive(_PATIENCE)
        if received is None:
            return ["the sandbox ended at once"]
        control = stack.enter_context(messages.end_of(received[1][0]))
        way = Way(**received[0]["said"]["way"])
        found = _visit(control, way, outside)
        channel.signal(9)
        while (told := channel.receive(_PATIENCE)) is not None and "gone" not in told[0]:
            pass
    return found


def _visit(control: socket.socket, way: Way, outside: dict[str, Any]) -> list[str]:
    """Have a visitor try everything, beside the process 1 that sandboxes have."""
    folder = FIRST_GROUP[0] if way.grouped else -1
    wish = Wish(["visitor"], {}, "/")
    visit = json.dumps(outside).encode()
    command = Command(way, wish, folder, kind=Kind.VISITOR, visit=visit)
    mine, theirs = messages.pair()
    with mine:
        mine.settimeout(_PATIENCE)
        with theirs:
            own = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)]
            fds = [theirs.fileno(), *own * 3]
            if program.is_there():
                _become_program(command.table)
                own.append(program.program())
                fds.append(own[-1])
            try:
                hands.send(control, command.table.message(NOBODY), fds)
            finally:
                for descriptor in own:
                    os.close(descriptor)
        if program.is_there():
            _confine_again(control, way)
        messages.send(mine, {"go": True})
        received = messages.receive(mine)
    told = {} if received is None else received[0]
    if "possible" in told:
        return [str(one) for one in told["possible"]]
    return [f"the attacks ended without an answer: {told.get('failed', 'the visitor is gone')}"]


def _become_program(table: Table) -> None:
    """Process 1 is a Python, as somebody has to start the visitor; from here on it is the program,
    with the same descriptors and capabilities.
    """
    for descriptor in (program.CHANNEL, program.SIGNALS, GROUP):
        table.call("fcntl", descriptor, fcntl.F_SETFD, 0, may=(errno.EBADF,))
    words = table.texts([b"sandbox-init"])
    none = table.texts([])
    table.call("execveat", given(4), b"", words, none, linux.AT_EMPTY_PATH)


def _confine_again(control: socket.socket, way: Way) -> None:
    table = Table()
    held = way.held | privileges.SYS_ADMIN
    table.call("capset", *capability_sets(table, held, 0))
    table.call("prctl", linux.PR_SET_NAME, b"sandbox-init")
    table.call("prctl", linux.PR_SET_DUMPABLE, 0 if way.guarded else 1)
    hands.run(control, table)
