"""In a command's own process: what confines it, then its program. Also what it may fail at."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from pytest_sandbox.errors import MissingDirectory, UnknownUser
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.spec.process import DEFAULT_PATH
from pytest_sandbox.oci.spec.users import resolve_user
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import describe
from pytest_sandbox.runtimes.oci.launchers.attacks import Outside, run_all
from pytest_sandbox.runtimes.oci.launchers.direct import privileges
from pytest_sandbox.runtimes.oci.programs import not_executed

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

OOM_SCORE: Final = b"900"
"""A command is to be killed before process 1 (proc(5), oom_score_adj)."""
CANNOT: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR, errno.ELOOP})


class Confinement(NamedTuple):
    """What all commands of a sandbox have in common; `user` is who they are unless they say so,
    `env` what they start with.
    """

    user: Mapping[str, Any]
    env: Mapping[bytes, bytes]
    capabilities: int
    rlimits: list[tuple[int, tuple[int, int]]]
    deny: bytes

    @classmethod
    def of(cls, process: Mapping[str, Any], user: Mapping[str, Any], deny: bytes) -> Confinement:
        """From the `process` of a runtime spec."""
        bounding = privileges.bits(process["capabilities"]["bounding"])
        env = dict(os.fsencode(entry).partition(b"=")[::2] for entry in process["env"])
        return cls(user, env, bounding, privileges.limits(process["rlimits"]), deny)


def become(
    confinement: Confinement, message: Mapping[str, Any], stdio: list[int], channel: socket.socket
) -> NoReturn:
    """Be the command that `message` describes; what hinders it is said on `channel`."""
    status = 127
    try:
        os.setsid()
        for standard, descriptor in enumerate(stdio):
            os.dup2(descriptor, standard)
        user = _confine(confinement, message)
        status = _execute(message, environment(confinement, message, user))
        os.write(2, not_executed(message["argv"][0], status))
    except BaseException as error:
        with contextlib.suppress(BaseException):
            messages.send(channel, {"failed": describe(error)})
    finally:
        os._exit(status)


def attempt(
    confinement: Confinement, message: Mapping[str, Any], channel: socket.socket
) -> NoReturn:
    """Try every attack of the launcher's self-test, with just what a command has; the findings are
    said on `channel`.
    """
    try:
        os.setsid()
        _confine(confinement, message)
        known = message["trial"]
        outside = Outside(
            ports=tuple(known["ports"]),
            sockets=tuple(known["sockets"]),
            kept=frozenset({channel.fileno()}),
        )
        messages.send(channel, {"possible": run_all(outside)})
    except BaseException as error:
        with contextlib.suppress(BaseException):
            messages.send(channel, {"failed": describe(error)})
    finally:
        os._exit(0)


def _confine(confinement: Confinement, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give up what a command must not have; its user.

    Until its program runs, its memory is the launcher's, and closed to other commands: first by a
    capability that they lack, then because it cannot be dumped (ptrace(2)). A program can be again.
    """
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else the file is not the sandbox's root's
    with contextlib.suppress(OSError):
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(score, OOM_SCORE)
        os.close(score)
    user = user_of(confinement, message)
    for number, pair in confinement.rlimits:
        resource.setrlimit(number, pair)
    if confinement.deny:
        linux.install_filter(confinement.deny)
    os.setgroups(user["groups"])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    held = confinement.capabilities if user["uid"] == 0 else 0
    linux.capset(held, held)
    return user


def user_of(confinement: Confinement, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who a command is. Raises UnknownUser, InvalidImage."""
    name = message["user"]
    if not name:
        return confinement.user
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return resolve_user(root, name).to_json()
    except UnknownUser as wrong:
        msg = f"user {name!r} is unknown in the sandbox: {wrong.what}"
        raise UnknownUser(msg, next_step=wrong.next_step) from None
    finally:
        os.close(root)


def _execute(message: Mapping[str, Any], env: Mapping[bytes, bytes]) -> int:
    """Returns only when it cannot be executed: 126 or 127. Raises MissingDirectory."""
    try:
        os.chdir(message["cwd"])
    except OSError:
        raise no_folder(message["cwd"]) from None
    argv = [os.fsencode(word) for word in message["argv"]]
    found = 127
    for program in candidates(argv[0], env.get(b"PATH", b"")):
        try:
            os.execve(program, argv, env)
        except OSError as wrong:
            if wrong.errno == errno.E2BIG:
                raise
            if wrong.errno in CANNOT:
                found = 126
    return found


def environment(
    confinement: Confinement, message: Mapping[str, Any], user: Mapping[str, Any]
) -> Mapping[bytes, bytes]:
    """The whole environment of a command. HOME is the user's where nothing else sets it."""
    env = confinement.env
    if not (message["set"] or message["user"]) and env.get(b"HOME"):
        return env
    changed = {os.fsencode(name): os.fsencode(text) for name, text in message["set"].items()}
    env = {**env, **changed}
    if message["user"] or not env.get(b"HOME"):
        env[b"HOME"] = os.fsencode(user["home"])
    return env


def no_folder(cwd: str) -> MissingDirectory:
    """The error for a working folder that is none."""
    return MissingDirectory(f"cwd {cwd!r} is no directory in the sandbox")


def candidates(name: bytes, path: bytes) -> list[bytes]:
    """As execvp(3) looks for it."""
    if b"/" in name:
        return [name]
    folders = (path or DEFAULT_PATH.encode()).split(b":")
    return [os.path.join(folder or b".", name) for folder in folders]  # noqa: PTH118
