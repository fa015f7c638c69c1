"""Job of the supervisor: one more command in a running sandbox, as a real exec of the engine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import MissingDirectory
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.spec.capabilities import capabilities
from pytest_sandbox.runtimes.oci.engine_cli import (
    EngineCli,
    EngineRefused,
    exec_status,
    make_states,
    start_error,
)
from pytest_sandbox.runtimes.oci.programs import find_program
from pytest_sandbox.runtimes.oci.user_job import user_in

if TYPE_CHECKING:
    from pytest_sandbox.oci.supervisor import Call

_GONE: Final = 137
"""The status of a command whose sandbox ended under it."""


def run(call: Call) -> dict[str, Any]:
    """Start a command in the sandbox `id`, whose first process is `pid`.

    args: `id`, `pid`, `engine`, `rootless`, `argv`, `env` (NAME=VALUE texts, whole), `cwd`, `user`,
    `tty` (with `size`, its rows and columns), `no_new_privileges`, `nofile`; fds: stdin, stdout,
    stderr (not with `tty`: then the terminal is said as `console`).

    Gives `status` 126 or 127 for a command that cannot be started (137: the sandbox is gone), or
    `pid`: it is watched with the caller's channel. Raises UnknownUser, MissingDirectory,
    RuntimeUnavailable.
    """
    args = call.args
    try:
        root = os.open(f"/proc/{args['pid']}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {"status": _GONE}
    found = call.mapped(lambda: _look(root, args))
    if found["status"]:
        return {"status": found["status"]}
    _use_its_cpus(args["pid"], 0)
    token = secrets.token_hex(6)
    place = Path(call.room, args["id"])
    process = place / f"exec-{token}.json"
    process.write_text(json.dumps(_process(args, found["user"])), encoding="utf-8")
    pid_file, log = place / f"exec-{token}.pid", place / f"exec-{token}.log"
    words = ["exec", "--detach", "--process", str(process), "--pid-file", str(pid_file)]
    cli = EngineCli(args["engine"], make_states(call.room), rootless=args["rootless"])
    console: socket.socket | None = None
    try:
        if args["tty"]:
            console = socket.socket(socket.AF_UNIX)
            console.bind(str(place / f"c{token}"))
            console.listen(1)
            words += ["--console-socket", str(place / f"c{token}")]
        stdio = () if args["tty"] else tuple(call.fds[:3])
        cli.run([*words, args["id"]], log=str(log), stdio=stdio, what="start the command")
        pid = int(pid_file.read_text(encoding="ascii"))
        _use_its_cpus(args["pid"], pid)  # an engine may give a command all of them back
        call.watch(pid, name=f"{args['id']}/{token}")
        if console is not None:
            console.settimeout(10)
            end, _ = console.accept()
            with end:
                _, fds, _, _ = socket.recv_fds(end, 4096, 1)
            call.send({"console": True}, fds)
    except (EngineRefused, FileNotFoundError) as refused:
        if not _lives(args["pid"]) or isinstance(refused, FileNotFoundError):
            return {"status": _GONE}
        status = exec_status(refused.text)
        if status is None:
            raise start_error(refused) from None
        return {"status": status}
    finally:
        if console is not None:
            console.close()
        for path in (process, pid_file, log, place / f"c{token}"):
            path.unlink(missing_ok=True)
    return {"status": 0, "pid": pid}


def _use_its_cpus(sandbox: int, process: int) -> None:
    """Hold a process (0: this one, and what it starts) to the CPUs that the sandbox's first one is
    held to: the weaker limit of CPUs, which a command of an engine does not inherit.
    """
    with contextlib.suppress(OSError):  # one of the two is gone: others say so
        os.sched_setaffinity(process, os.sched_getaffinity(sandbox))


def _lives(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _look(root: int, args: dict[str, Any]) -> dict[str, Any]:
    user = user_in(root, args["user"])
    cwd = args["cwd"] or "/"
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        os.close(linux.openat2(root, cwd, flags, resolve=linux.RESOLVE_IN_ROOT))
    except OSError as wrong:
        msg = f"cwd {cwd!r} is no directory in the sandbox"
        raise MissingDirectory(msg) from wrong
    path = next((e[5:] for e in reversed(args["env"]) if e.startswith("PATH=")), "")
    return {
        "user": user,
        "status": find_program(root, args["argv"][0], path, user["uid"], cwd),
    }


def _process(args: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    env = list(args["env"])
    if not any(entry.startswith("HOME=") and entry != "HOME=" for entry in env) or args["user"]:
        env = [entry for entry in env if not entry.startswith("HOME=")]
        env.append(f"HOME={user['home']}")
    rows, columns = args.get("size") or (0, 0)
    size = {"consoleSize": {"height": rows, "width": columns}} if rows and columns else {}
    return {
        **size,
        "terminal": args["tty"],
        "user": {
            "uid": user["uid"],
            "gid": user["gid"],
            "additionalGids": user["groups"],
            "umask": 0o022,
        },
        "args": args["argv"],
        "env": env,
        "cwd": args["cwd"] or "/",
        "capabilities": capabilities(user["uid"]),
        "noNewPrivileges": args["no_new_privileges"],
        "rlimits": [
            {"type": name, "soft": soft, "hard": hard}
            for name, (soft, hard) in args["rlimits"].items()
        ],
    }
