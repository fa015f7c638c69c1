"""Where a supervisor works: namespaces of its own, a room for mount points, the sandboxes' ids."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping


def settle(client: socket.socket, setup: Mapping[str, Any]) -> int | None:
    """Enter the namespaces and mount the room. Raises OSError.

    Gives a descriptor of a user namespace with the sandboxes' ids; None where this is it.
    """
    linux.prctl(linux.PR_SET_NAME, b"sandbox-keeper")
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    os.umask(0o022)  # the client's may close what sandboxes have to walk through
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # nor do its blocked signals go any further
    with contextlib.suppress(OSError):  # cpu groups (v1) refuse real-time processes
        if os.sched_getscheduler(0) not in {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE}:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if setup["rootless"]:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        messages.send(client, {"map": os.getpid()})
        if messages.receive(client) is None:
            sys.exit(1)
        _become_root()
    else:
        linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount(
        "tmpfs", setup["room"], "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0711,size=1g"
    )
    return None if setup["rootless"] else _make_ids(setup)


def enter(ids: int) -> None:
    """Become root of the sandboxes' ids."""
    linux.setns(ids, linux.CLONE_NEWUSER)
    _become_root()


def _become_root() -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    with contextlib.suppress(OSError):
        os.setgroups([])


def _make_ids(setup: Mapping[str, Any]) -> int:
    """A user namespace with the sandboxes' ids, held by a descriptor."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go[1])  # else it would wait for itself
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(ready[1], b".")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    for end in (ready[1], go[0]):
        os.close(end)
    try:
        if not os.read(ready[0], 1):
            msg = "no user namespace can be made"
            raise OSError(msg)
        for name in ("uid", "gid"):
            lines = "".join(f"{a} {b} {c}\n" for a, b, c in setup[f"{name}s"])
            with open(f"/proc/{child}/{name}_map", "w", encoding="ascii") as file:  # noqa: PTH123
                file.write(lines)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready[0])
        os.close(go[1])
        os.waitpid(child, 0)
