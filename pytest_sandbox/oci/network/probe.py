"""What of the network works here, by trying it: for doctor and for the choice of a runtime."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.network import bridge, stack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SEPARATOR: Final = "\0"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: `id` is stable; `next_step` is empty where all is well."""

    id: str
    ok: bool
    what: str
    next_step: str = ""


def probe(stacks: Sequence[str] = stack.NAMES, *, every: bool = False) -> list[Finding]:
    """Try the stacks on a namespace of their own, as whoever calls (root, an ordinary user, or root
    of a user namespace), until one works, or `every` one.

    The first finding is that about --network=bridge, for which one of them is enough; then comes
    one for each stack tried. Takes some 20 ms a stack (1.2 s for a pasta that loses data). The
    caller has one thread.
    """
    tries: list[Finding] = []
    for name in stacks:
        tries.append(_in_child(partial(_try, name)))
        if tries[-1].ok and not every:
            break
    whole = next((found for found in tries if found.ok), None)
    if whole is not None:
        return [Finding("network-bridge", True, f"--network=bridge: {whole.what}"), *tries]
    reasons = [found for found in tries if found.id != "network-stack-missing"] or tries
    first = reasons[0] if reasons else Finding("network-stack-missing", False, "no stack")
    what = f"--network=bridge does not work: {first.what}"
    return [Finding(first.id, False, what, first.next_step), *tries]


def _try(name: str) -> Finding:
    program = stack.find(name)
    if program is None:
        what = f"{name} is not installed"
        step = f"as root: apt-get install {'passt' if name == 'pasta' else name} (or the like)"
        return Finding("network-stack-missing", False, what, step)
    try:
        _settle()
        pid = _sandbox()
    except OSError as error:
        what = f"no user and network namespace can be made: {error.strerror}"
        step = "allow user namespaces (sysctl user.max_user_namespaces, AppArmor, the container)"
        return Finding("network-no-namespaces", False, what, step)
    try:
        attached = bridge.attach(pid, stacks=[name])
    except SandboxError as error:
        problem = getattr(error, "problem", "network-stack-failed")
        return Finding(problem, False, error.what, error.next_step)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(attached.pids[0], signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(attached.pids[0], 0)
    notes = "".join(f"; {note}" for note in attached.notes)
    return Finding(f"network-{name}", True, f"{program} works{notes}")


def _in_child(work: Callable[[], Finding]) -> Finding:
    """`work` in a child, which may change its namespaces."""
    answer, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            found = work()
            words = (found.id, "ok" if found.ok else "", found.what, found.next_step)
            os.write(tell, _SEPARATOR.join(words).encode()[:4000])
        finally:
            os._exit(0)
    os.close(tell)
    with open(answer, "rb") as file:  # noqa: PTH123
        text = file.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    if not text:
        return Finding("network-probe", False, "the probe died", "report it as a bug")
    name, ok, what, step = text.split(_SEPARATOR)
    return Finding(name, bool(ok), what, step)


def _settle() -> None:
    """Have rights: an ordinary user becomes root of a user namespace of one id."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        _write(f"/proc/self/{name}", text)


def _sandbox() -> int:
    """A process that waits in a user and a network namespace of its own."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
            os.write(tell, b"\0")
            signal.pause()
        except OSError as error:
            os.write(tell, bytes([(error.errno or 255) & 255]))
        finally:
            os._exit(0)
    os.close(tell)
    try:
        answer = os.read(ready, 1)
        if answer != b"\0":
            number = answer[0] if answer else 0
            raise OSError(number, os.strerror(number))
        _map(child)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(ready)
    return child


def _map(child: int) -> None:
    """Root of the host maps the ids of sandboxes, root of a user namespace only its own."""
    with open("/proc/self/uid_map", encoding="ascii") as file:  # noqa: PTH123
        whole = file.read().split() == ["0", "0", "4294967295"]
    if whole and os.geteuid() == 0:
        ids = find_ids()
        for name, ranges in (("uid_map", ids.uids), ("gid_map", ids.gids)):
            text = "".join(f"{a} {b} {c}\n" for a, b, c in ranges)
            _write(f"/proc/{child}/{name}", text)
        return
    _write(f"/proc/{child}/setgroups", "deny")
    _write(f"/proc/{child}/uid_map", "0 0 1")
    _write(f"/proc/{child}/gid_map", "0 0 1")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)
