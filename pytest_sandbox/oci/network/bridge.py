"""Attach a user-mode stack and published ports to the network namespace of a sandbox.

Each such sandbox has one process, its network keeper: the first process of a PID namespace, the
stack in it. It watches the sandbox's first process and forwards the published ports. When the
sandbox ends, or whoever ends the sandbox is killed, the keeper ends; when the keeper ends, however
that is, the kernel ends the stack. The keeper and the stack run as root of the sandbox's user
namespace (a subordinate id of the host), the keeper without any capability.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_sandbox.errors import RuntimeUnavailable, SandboxError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.network import resolver, stack, tap
from pytest_sandbox.oci.network.ports import Port, open_ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NS_GET_USERNS: Final = 0xB701
_CLONE_NEWPID: Final = 0x20000000
_PATIENCE: Final = 30.0
"""Seconds for the whole of it: each way to start a stack has stack.PATIENCE."""


class NoNetwork(RuntimeUnavailable):
    """No stack could be attached; `problem` is the stable id of the diagnosis."""

    def __init__(self, what: str, *, problem: str, next_step: str) -> None:
        super().__init__(what, next_step=next_step)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Attached:
    """A sandbox's network. `pids` are the keeper and what it started; the keeper is this process's
    orphan, to be reaped by its subreaper. `ports` have their numbers filled in.
    """

    pids: tuple[int, ...]
    stack: str
    address: str
    resolv_conf: str
    ports: tuple[Port, ...]
    notes: tuple[str, ...]


def attach(
    pid: int,
    *,
    namespace: int | None = None,
    ports: Iterable[Port] = (),
    stacks: Sequence[str] = stack.NAMES,
    lifetime: int | None = None,
) -> Attached:
    """Connect the network namespace of process `pid` (or the one behind `namespace`) and publish
    `ports`; returns when packets flow.

    The network ends with process `pid`, or when the descriptor `lifetime` hangs up. `stacks` are
    tried in this order. The caller has CAP_SYS_ADMIN in a user namespace above the one that owns
    the network namespace, and one thread. Its own network is the host's.

    Raises SandboxError for a port that cannot be had, NoNetwork and NoTun for a stack.
    """
    opened = open_ports(ports)
    watch = target = -1
    try:
        watch = os.pidfd_open(pid)
        if namespace is None:
            target = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        else:
            target = os.dup(namespace)
        mine, theirs = os.stat("/proc/self/ns/net"), os.fstat(target)  # noqa: PTH116
        if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
            msg = f"process {pid} has the host's network: there is nothing to attach"
            raise ValueError(msg)
        until = [watch] if lifetime is None else [watch, lifetime]
        told = _employ(Keeper(target, opened, until, tuple(stacks)))
    finally:
        for descriptor in (watch, target):
            if descriptor >= 0:
                os.close(descriptor)
        for _, sock in opened:
            sock.close()
    text, notes = resolver.for_sandbox(resolver.host_text(), forwarded=_forwards(told["stack"]))
    return Attached(
        pids=(told["keeper"], *_children(told["keeper"])),
        stack=told["stack"],
        address=tap.ADDRESS,
        resolv_conf=text,
        ports=tuple(port for port, _ in opened),
        notes=(*told["notes"], *notes),
    )


def _forwards(name: str) -> bool:
    """Whether the stack answers DNS: slirp4netns sees only /etc and /run once it is fenced in."""
    with contextlib.suppress(OSError):
        real = os.path.realpath(resolver.HOST)
        return name != "slirp4netns" or real.startswith(("/etc/", "/run/", "/var/run/"))
    return False


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]
    return []


def _employ(keeper: Keeper) -> dict[str, Any]:
    """Start the keeper as an orphan in a PID namespace of its own and hear what it has to say."""
    report, tell = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    middle = os.fork()
    if middle == 0:
        try:
            linux.unshare(_CLONE_NEWPID)
            child = os.fork()
            if child == 0:
                keeper.work(tell)
            _say(tell, {"keeper": child})
        except OSError as error:
            _say(tell, _failure(_no_namespace(error)))
        finally:
            os._exit(0)
    os.close(tell)
    told: dict[str, Any] = {}
    try:
        os.waitpid(middle, 0)
        told = _hear(report)
    finally:
        os.close(report)
        if "stack" not in told and "keeper" in told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(told["keeper"], signal.SIGKILL)
    if "failed" in told:
        failed = told["failed"]
        if failed["problem"].startswith("tun-"):
            raise tap.NoTun(**failed)
        raise NoNetwork(**failed)
    if "stack" not in told or "keeper" not in told:
        what = "the network of the sandbox did not come up: its process ended or hung"
        raise NoNetwork(what, problem="network-keeper", next_step="pytest-sandbox doctor")
    return told


def _hear(report: int) -> dict[str, Any]:
    """The lines of the report, until both processes have spoken, one failed, or time is over."""
    told: dict[str, Any] = {}
    text = b""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    end = time.monotonic() + _PATIENCE
    while not ("failed" in told or {"keeper", "stack"} <= told.keys()):
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        data = os.read(report, 65536)
        if not data:
            break
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            told.update(json.loads(line))
    return told


def _say(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, SandboxError):
        problem = getattr(error, "problem", "network-keeper")
        failed = {"what": error.what, "problem": problem, "next_step": error.next_step}
    else:
        failed = {
            "what": f"the network of the sandbox could not be made: {error}",
            "problem": "network-keeper",
            "next_step": "pytest-sandbox doctor",
        }
    return {"failed": {name: text[:1000] for name, text in failed.items()}}


def _no_namespace(error: OSError) -> NoNetwork:
    what = f"no PID namespace can be made for the network of the sandbox: {error}"
    return NoNetwork(what, problem="no-pid-namespace", next_step="pytest-sandbox doctor")


class Keeper:
    """What the network keeper does. Everything here runs in its process."""

    def __init__(
        self,
        namespace: int,
        opened: Sequence[tuple[Port, socket.socket]],
        until: Sequence[int],
        stacks: Sequence[str],
    ) -> None:
        self._namespace = namespace
        self._opened = opened
        self._until = until
        self._stacks = stacks

    def work(self, report: int) -> NoReturn:
        """Set everything up, tell it, and stay until the sandbox ends."""
        try:
            try:
                self._withdraw(report)
                started = self._connect()
            except BaseException as error:
                _say(report, _failure(error))
                raise
            linux.setns(self._namespace, linux.CLONE_NEWNET)
            os.close(self._namespace)
            _drop_everything()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            from pytest_sandbox.oci.network.forward import Forwarder

            forwarder = Forwarder(self._opened, tap.ADDRESS)
            _say(report, {"stack": started.name, "notes": started.notes})
            os.close(report)
            forwarder.serve(self._until)
        finally:
            os._exit(0)  # and the kernel ends the stack

    def _withdraw(self, report: int) -> None:
        """Let go of what belongs to the parent, then of its rights."""
        signal.set_wakeup_fd(-1)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        linux.prctl(linux.PR_SET_NAME, b"sandbox-network")
        os.chdir("/")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection takes two
        gc.freeze()  # what the parent has opened is closed below: no object may do it later
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        kept = {report, self._namespace, *self._until, *(s.fileno() for _, s in self._opened)}
        last = 2
        for number in sorted(kept):
            os.closerange(last + 1, number)
            last = number
        os.closerange(last + 1, 1 << 20)
        _private_tun()
        self._become_root_inside()

    def _become_root_inside(self) -> None:
        """Enter the user namespace that owns the network, as its root."""
        owner = fcntl.ioctl(self._namespace, _NS_GET_USERNS)
        here, there = os.stat("/proc/self/ns/user"), os.fstat(owner)  # noqa: PTH116
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            linux.setns(owner, linux.CLONE_NEWUSER)
        os.close(owner)
        os.setresgid(0, 0, 0)
        with contextlib.suppress(OSError):  # a namespace whose setgroups is denied
            os.setgroups([])
        os.setresuid(0, 0, 0)

    def _connect(self) -> stack.Started:
        control = self._make_tap()
        failures = []
        for name in self._stacks:
            program = stack.find(name)
            if program is None:
                failures.append(f"{name} is not installed")
                continue
            try:
                return stack.start(name, program, self._namespace, control)
            except stack.StackFailed as error:
                failures.append(f"{name}: {error}")
                _end_others()
        missing = all(text.endswith("is not installed") for text in failures)
        what = f"no network for the sandbox: {'; '.join(failures)}"
        raise NoNetwork(
            what,
            problem="network-stack-missing" if missing else "network-stack-failed",
            next_step="install slirp4netns (Debian: apt-get install slirp4netns), or run it with "
            "--network=none or --network=host",
        )

    def _make_tap(self) -> socket.socket:
        """The device, made by a child: this process has to stay in the host's network until a
        stack runs.
        """
        ours, its = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                linux.setns(self._namespace, linux.CLONE_NEWNET)
                control = tap.make_tap()
                socket.send_fds(its, [b"{}"], [control.fileno()])
            except BaseException as error:
                its.send(json.dumps(_failure(error)).encode())
            finally:
                os._exit(0)
        its.close()
        text, descriptors, _, _ = socket.recv_fds(ours, 65536, 1)
        ours.close()
        os.waitpid(child, 0)
        if descriptors:
            return socket.socket(fileno=descriptors[0])
        if not text:
            msg = "the process that makes its device died"
            raise OSError(msg)
        raise NoNetwork(**json.loads(text)["failed"])


def _end_others() -> None:
    """End everything else of this PID namespace: what is left of a stack holds the device."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _private_tun() -> None:
    """As root of the host: a /dev/net/tun that others may open, seen by this process only.

    The node of the host may be 0600, and the stack is no root of the host any more. It gains
    nothing: the device gives rights to nobody without CAP_NET_ADMIN over a network namespace.
    """
    with contextlib.suppress(OSError):
        if os.geteuid() != 0 or tap.TUN.stat().st_mode & 0o006 == 0o006:
            return
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("tmpfs", tap.TUN.parent, "tmpfs", linux.MS_NOSUID, "mode=0755,size=64k")
        try:
            os.mknod(tap.TUN, 0o020666, tap.DEVICE)
            tap.TUN.chmod(0o666)
        except OSError:  # root of a user namespace: the host's node stays in sight
            linux.umount(tap.TUN.parent, linux.MNT_DETACH)


def _drop_everything() -> None:
    """No capability, now and after an exec. Raises OSError."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    header = ctypes.create_string_buffer(struct.pack("=II", 0x20080522, 0), 8)
    none = ctypes.create_string_buffer(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")
