"""slirp4netns and pasta: the user-mode stacks, found on the PATH and started by trying.

slirp4netns comes first: it says when it is ready (in 4 ms, as quick as a veth pair without its
firewall rules, and no rule of the host is touched), and forwards DNS over TCP too. Both run as
root of the sandbox's own user namespace: on the host that is a subordinate id.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.network import tap
from pytest_sandbox.oci.network.trial import stream_fault

if TYPE_CHECKING:
    import socket

NAMES: Final = ("slirp4netns", "pasta")
PATIENCE: Final = 5.0
"""Seconds until a stack must be ready."""
_MORE_FOLDERS: Final = ("/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin")


class StackFailed(Exception):
    """A stack did not start; its text says why."""


@dataclass(frozen=True, slots=True)
class Started:
    """A running stack: its name, and what is weaker than it should be."""

    name: str
    notes: tuple[str, ...]


def find(name: str, path: str | None = None) -> str | None:
    """The program `name`, on PATH or in the usual folders."""
    folders = (os.environ.get("PATH", "") if path is None else path).split(":")
    for folder in (*folders, *(_MORE_FOLDERS if path is None else ())):
        program = Path(folder) / name
        if folder.startswith("/") and program.is_file() and os.access(program, os.X_OK):
            return str(program)
    return None


def start(name: str, program: str, namespace: int, control: socket.socket) -> Started:
    """Start a stack on the prepared device of a network namespace and wait until it is ready.

    `namespace` is the namespace's descriptor; `control` is the socket of tap.make_tap. The stack is
    a child of this process (pasta: an orphan), in the host's network. Raises StackFailed.
    """
    # pasta closes what it inherits; that of 2023 does not, and can open nothing else. /proc knows
    # this process by its number outside.
    outside = f"/proc/{os.readlink('/proc/self')}/fd/{namespace}"  # noqa: PTH115
    inherited = f"/proc/self/fd/{namespace}"
    if name == "pasta":
        tries = [(_pasta(program, outside), ""), (_pasta(program, inherited), "")]
    else:
        tries = _slirp(program, inherited)
    os.set_inheritable(namespace, True)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # or /proc shows its descriptors to nobody
    try:
        started = _first(name, tries, control)
    finally:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        os.set_inheritable(namespace, False)
    if name == "pasta" and (fault := stream_fault(namespace)):
        raise StackFailed(fault)
    return started


def _first(name: str, tries: list[tuple[list[str], str]], control: socket.socket) -> Started:
    """The first way that works."""
    failures = []
    for command, weaker in tries:
        try:
            _fence_in(_start(command, control, says_ready=name != "pasta"))
        except StackFailed as error:
            failures.append(str(error))
            continue
        notes = (f"{name} runs without {weaker}: {failures[0]}",) if weaker else ()
        return Started(name, notes)
    raise StackFailed(failures[-1] if name == "pasta" else failures[0])


def _slirp(program: str, namespace: str) -> list[tuple[list[str], str]]:
    fences = ["--enable-sandbox", "--enable-seccomp"]

    def command(fences: list[str]) -> list[str]:
        options = ["--disable-host-loopback", f"--mtu={tap.MTU}", "--netns-type=path", *fences]
        return [program, *options, namespace, tap.NAME]

    return [
        (command(fences), ""),
        (command(fences[:1]), "seccomp"),
        (command(fences[1:]), "its mount namespace"),
        (command([]), "seccomp and its mount namespace"),
    ]


def _pasta(program: str, namespace: str) -> list[str]:
    command = [program, "--ipv4-only", "--no-map-gw", "--ns-ifname", tap.NAME]
    command += ["--address", tap.ADDRESS, "--netmask", "24", "--gateway", tap.GATEWAY]
    command += ["--mtu", str(tap.MTU), "--dns-forward", tap.RESOLVER]
    for option in ("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"):
        command += [option, "none"]
    command += ["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--no-netns-quit"]
    return [*command, "--netns-only", "--netns", namespace]


def _start(command: list[str], control: socket.socket, *, says_ready: bool) -> int | None:
    ready, tell = os.pipe2(os.O_CLOEXEC)
    errors, complain = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    if says_ready:
        os.set_inheritable(tell, True)
        command = [command[0], f"--ready-fd={tell}", *command[1:]]
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        pid = os.posix_spawn(
            command[0],
            command,
            {"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, complain, 2),
            ],
            setsigmask=(),
            # pasta 2023 ends at once if SIGPIPE is ignored already; it ignores it itself.
            setsigdef=() if says_ready else (signal.SIGPIPE,),
        )
        os.close(null)
    except OSError as error:
        for descriptor in (ready, errors, tell, complain):
            os.close(descriptor)
        what = f"{command[0]}: {error.strerror}"
        raise StackFailed(what) from error
    os.close(tell)
    os.close(complain)
    try:
        _await(pid, ready if says_ready else None, errors, control)
    finally:
        os.close(ready)
        os.close(errors)  # it ignores SIGPIPE, as its parent does
    return pid if says_ready else None


def _await(pid: int, ready: int | None, errors: int, control: socket.socket) -> None:
    text = b""
    poll = select.poll()
    poll.register(errors, select.POLLIN)
    if ready is not None:
        poll.register(ready, select.POLLIN)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for descriptor, _ in poll.poll(20 if ready is not None else 1):
            if descriptor == ready:
                if os.read(ready, 1) and tap.has_carrier(control):
                    return
                poll.unregister(ready)
            else:
                text += os.read(errors, 4096)
                if not text or len(text) > 1 << 16:
                    poll.unregister(errors)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            # pasta's first process ends once its other one is ready.
            if ready is None and status == 0 and tap.has_carrier(control):
                return
            with contextlib.suppress(BlockingIOError):
                text += os.read(errors, 4096)
            raise StackFailed(_last_words(text) or "it ended without a word")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    msg = f"not ready in {PATIENCE:.0f} s: {_last_words(text)}"
    raise StackFailed(msg)


def _fence_in(pid: int | None) -> None:
    """Put the filter of tap.py on the stack's descriptor of the device. Raises StackFailed.

    The stack may be any process of this PID namespace, where this one is the first.
    """
    problem = "it does not hold the device"
    for candidate in range(2, 1024) if pid is None else (pid,):
        try:
            process = os.pidfd_open(candidate)
        except OSError:
            continue
        try:
            for number in range(3, 64):
                if _filter_tun(process, number):
                    return
        except OSError as error:
            problem = str(error)
        finally:
            os.close(process)
    msg = f"its packets cannot be filtered: {problem}"
    raise StackFailed(msg)


def _filter_tun(process: int, number: int) -> bool:
    """Filter the descriptor `number` of a process if it is the device. Raises OSError."""
    try:
        descriptor = linux.pidfd_getfd(process, number)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        raise
    try:
        status = os.fstat(descriptor)
        found = stat.S_ISCHR(status.st_mode) and status.st_rdev == tap.DEVICE
        if found:
            tap.attach_filter(descriptor)
        return found
    finally:
        os.close(descriptor)


def _last_words(text: bytes) -> str:
    """The last line that tells something (pasta adds lines about a missing syslog)."""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and "to syslog" not in line]
    return lines[-1][:300] if lines else ""
