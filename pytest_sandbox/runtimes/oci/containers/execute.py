"""`exec`: one more command in a running sandbox, on our streams."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.spec.resources import MOST_NOFILE, SOFT_NOFILE
from pytest_sandbox.runtimes.oci.containers.folder import NotRunning
from pytest_sandbox.runtimes.oci.containers.reaching import reach, to_group
from pytest_sandbox.runtimes.oci.containers.record import shell_status
from pytest_sandbox.runtimes.oci.containers.spelling import is_odd, no_shell, refuse_odd, spelled
from pytest_sandbox.runtimes.oci.containers.start import Refused
from pytest_sandbox.runtimes.oci.foreground import attend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.runtimes.oci.containers.folder import Container
    from pytest_sandbox.runtimes.oci.foreground import Signals, Streams

_RUN: Final = "pytest_sandbox.runtimes.oci.exec_job:run"
_GONE: Final = 137


def execute(
    container: Container,
    argv: Sequence[str],
    streams: Streams,
    signals: Signals,
    *,
    env: Sequence[str] = (),
    user: str = "",
    cwd: str = "",
    tty: bool = False,
) -> int:
    """Run a command to its end; its exit status as a shell tells it.

    Raises NotRunning, Refused, UnknownUser, MissingDirectory.
    """
    record = container.record
    refuse_odd("the variable", env)
    refuse_odd("the folder", [cwd])
    supervisor = reach(container)
    try:
        args = {
            "id": record.id,
            "pid": record.pid,
            "engine": record.engine,
            "rootless": record.rootless,
            "argv": list(spelled(argv)),
            "env": _environment(record.env, env, tty=tty),
            "cwd": cwd or record.cwd,
            "user": user or record.user,
            "tty": tty,
            "size": list(getattr(streams, "size", (0, 0))),
            "no_new_privileges": record.no_new_privileges,
            "rlimits": {"RLIMIT_NOFILE": _nofile()},
        }
        channel = supervisor.open(_RUN, args, streams.theirs)
        streams.given()
        try:
            told = channel.result()
            if told["status"] == _GONE:
                raise NotRunning(container.refresh())
            if told["status"] and is_odd(argv):
                raise no_shell(argv)
            if told["status"]:
                raise Refused(told["status"], argv[0])
            group = to_group(supervisor, told["pid"])
            status, _ = attend(channel, streams, signals, group=group)
        finally:
            channel.close()
        return shell_status(status)
    finally:
        supervisor.close()


def _environment(base: Sequence[str], changes: Sequence[str], *, tty: bool) -> list[str]:
    found = {"TERM": "xterm"} if tty else {}
    for entry in (*base, *changes):
        name, given, value = entry.partition("=")
        if given:
            found[name] = value
        else:
            found.pop(name, None)
    return [f"{name}={value}" for name, value in found.items()]


def _nofile() -> list[int]:
    """As a sandbox's first process has it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = min(MOST_NOFILE, hard if hard >= 0 else MOST_NOFILE)
    return [min(SOFT_NOFILE, most), most]
