"""A job: one function that runs in a forked child of the supervisor, and how its errors travel."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_sandbox import errors
from pytest_sandbox.oci.supervisor import messages

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence


class Call:
    """What a job was asked: `args` (JSON), `fds` (open descriptors, its own to close)."""

    def __init__(
        self,
        args: dict[str, Any],
        fds: list[int],
        *,
        reply: socket.socket,
        note: socket.socket,
        room: str,
        enter: Callable[[], None],
        ids: int | None = None,
    ) -> None:
        self.args = args
        self.fds = fds
        self.room = room
        """The supervisor's private tmpfs: mount points and bundles go there."""
        self.ids = ids
        """A descriptor of the user namespace with the sandboxes' ids; None where this is it."""
        self.spent = False
        """Set by a `repeatable` job that left something in its process after all."""
        self._reply = reply
        self._note = note
        self._enter = enter

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Say something before the end, with descriptors if need be."""
        messages.send(self._reply, {"said": dict(message)}, fds)

    def watch(
        self,
        pid: int,
        *,
        after: tuple[str, Mapping[str, Any]] | None = None,
        name: str = "",
    ) -> None:
        """Hand the orphan `pid` to the supervisor, with the caller's channel.

        Its end is told there as `{"exit": status, "cpu": seconds}` (the status as
        os.waitstatus_to_exitcode gives it, the CPU time with its children's). When the other end
        of the channel closes, it is killed. After it the job `after` runs (on the host's side, with
        `status` added to its arguments) and `{"gone": ...}` is told. Where the caller ends it
        (Channel.end), the job begins while it dies, and has a pidfd of it.
        """
        message = {
            "watch": pid,
            "after": list(after) if after else None,
            "name": name,
        }
        messages.send(self._note, message, [self._reply.fileno()])

    def mapped(self, function: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Run `function` as root of the sandboxes' ids and return its answer (JSON)."""
        if self.ids is None:
            return dict(function())
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                self._enter()
                answer: dict[str, Any] = {"done": dict(function())}
            except BaseException as error:
                answer = {"failed": describe(error)}
            try:
                with open(writer, "wb", closefd=False) as out:
                    out.write(json.dumps(answer).encode("utf-8", "surrogateescape"))
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as source:  # noqa: PTH123
            data = source.read()
        os.waitpid(pid, 0)
        if not data:
            msg = "a child of a job ended without an answer"
            raise JobFailed(msg)
        answer = json.loads(data.decode("utf-8", "surrogateescape"))
        if "failed" in answer:
            raise rebuild(answer["failed"], "job:job")
        done: dict[str, Any] = answer["done"]
        return done

    def enter_ids(self) -> None:
        """Become root of the sandboxes' ids, for good (a no-op where the job is that already)."""
        self._enter()


def repeatable(job: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """Mark a job that leaves nothing in its process (no child, no id or folder that it changed):
    one process may do it again and again. Its descriptors are closed after it, not by it.
    """
    job.repeatable = True  # type: ignore[attr-defined]
    return job


_ENDS: list[Callable[[], None]] = []


def at_end(function: Callable[[], None]) -> Callable[[], None]:
    """Run `function` when a process of jobs ends by itself."""
    _ENDS.append(function)
    return function


def leave() -> None:
    """In such a process: it ends."""
    for function in _ENDS:
        with contextlib.suppress(Exception):
            function()


@cache
def load(module: str) -> Any:
    """The module of jobs. Its function `warm`, if it has one, is called once: what that loads is
    there for every job.
    """
    loaded = import_module(module)
    if hasattr(loaded, "warm"):
        loaded.warm()
    return loaded


def find_job(name: str) -> Callable[[Call], Mapping[str, Any] | None]:
    """The function behind `package.module:function`. Raises ValueError for one that is not ours."""
    module, _, function = name.partition(":")
    if not module.startswith("pytest_sandbox.") or not function.isidentifier():
        msg = f"{name!r} names no job of this package"
        raise ValueError(msg)
    found: Callable[[Call], Mapping[str, Any] | None] = getattr(load(module), function)
    return found


def perform(job: Callable[[Call], Mapping[str, Any] | None], call: Call, word: str) -> bool:
    """Run a job to its end and tell its outcome to the caller, under `word`.

    Whether its process can do another one.
    """
    try:
        answer: dict[str, Any] = {word: dict(job(call) or {})}
    except BaseException as error:
        answer = {"failed": describe(error)}
        call.spent = True
    with contextlib.suppress(OSError):  # nobody may wait for it any more
        messages.send(call._reply, answer)
    return not call.spent


def describe(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    told: dict[str, Any] = {"type": type(error).__name__, "text": str(error)}
    if isinstance(error, errors.SandboxError):
        told |= {"what": error.what, "next_step": error.next_step, "details": error.details}
        told |= {"phase": str(error.phase), "blame": str(error.blame)}
        told["module"] = type(error).__module__
        told["more"] = {
            name: value
            for name, value in vars(error).items()
            if name not in told and isinstance(value, (str, int, float, bool, type(None)))
        }
    elif isinstance(error, OSError):
        told |= {"errno": error.errno, "strerror": error.strerror}
        told |= {"path": _text(error.filename)}
    else:
        import traceback

        told["trace"] = "".join(traceback.format_exception(error))[-4000:]
    return told


def _text(name: Any) -> str | None:
    return None if name is None else os.fsdecode(name) if not isinstance(name, int) else str(name)


class JobFailed(errors.SandboxError):
    """A job of the supervisor ended in a way that nobody foresaw."""

    phase = errors.Phase.IMAGE


def rebuild(told: Mapping[str, Any], job: str) -> BaseException:
    """The error that `describe` told, as far as it can be had again."""
    if "what" in told:
        kind = _kind(str(told["module"]), str(told["type"]))
        # Its own __init__ may want more than what travels.
        error = kind.__new__(kind, told["what"])
        errors.SandboxError.__init__(error, told["what"])
        for name, value in told["more"].items():
            setattr(error, name, value)
        error.next_step, error.details = told["next_step"], told["details"]
        error.phase, error.blame = errors.Phase(told["phase"]), errors.Blame(told["blame"])
        return error
    if "errno" in told:
        if told["errno"] is None:
            kind_name = str(told["type"])
            plain_kind = getattr(builtins, kind_name, OSError)
            known = isinstance(plain_kind, type) and issubclass(plain_kind, OSError)
            return plain_kind(told["text"]) if known else OSError(told["text"])
        return OSError(told["errno"], told["strerror"], told["path"])
    if told["type"] in {"KeyError", "ValueError", "TypeError", "NotImplementedError"}:
        kind = getattr(builtins, str(told["type"]))
        return kind(told["text"])  # type: ignore[no-any-return]
    what = f"{job.partition(':')[2]} failed inside: {told['type']}: {told['text']}"
    return JobFailed(what, details=str(told.get("trace", "")), next_step="report it as a bug")


def _kind(module: str, name: str) -> type[errors.SandboxError]:
    if module.startswith("pytest_sandbox."):
        found = getattr(import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, errors.SandboxError):
            return found
    return JobFailed


def warn(text: str) -> None:
    """A line for the supervisor's own log."""
    print(text, file=sys.stderr, flush=True)
