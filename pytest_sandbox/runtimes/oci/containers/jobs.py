"""Jobs of a sandbox's supervisor that other processes ask for: signals, stopping, the time limit.

The supervisor is the parent of the sandbox's first process, so the pid stays that process's as long
as a job runs, and no right is missing that an ordinary user's own process would not have.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.runtimes.oci.containers.folder import REASON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.oci.supervisor import Call

_LONGEST: Final = 86400.0
"""No single wait is longer, in seconds: poll(2) counts milliseconds in an int."""
_SETTLED: Final = 1.0
_READY: Final = 1 << (signal.SIGTTIN - 1)
_INIT: Final = b"/.sandbox-init"
_ENGINES: Final = frozenset({b"", b"runc", b"crun"})


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor of a child of the supervisor. Raises ProcessLookupError for another process."""
    descriptor = os.pidfd_open(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        if int(text.rpartition(")")[2].split()[1]) != os.getppid():
            raise ProcessLookupError(pid)
        yield descriptor
    except (FileNotFoundError, IndexError) as gone:
        raise ProcessLookupError(pid) from gone
    finally:
        os.close(descriptor)


def _ended(descriptor: int, seconds: float | None) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if seconds is None:
        return bool(poller.poll(None))
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > _LONGEST:
        if poller.poll(_LONGEST * 1000):
            return True
    return bool(poller.poll(max(left, 0.0) * 1000))


def _await_program(pid: int) -> None:
    """A process that has just been started may still be the engine's, which loses signals; and the
    init can pass them on when it has made itself ready (it ignores SIGTTIN from then on). Wait for
    that, up to a second.
    """
    until = time.monotonic() + _SETTLED
    while time.monotonic() < until:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[0].endswith(_INIT):
            for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
                if line.startswith("SigIgn:") and int(line.split()[1], 16) & _READY:
                    return
        elif words[0].rpartition(b"/")[2] not in _ENGINES:
            return
        time.sleep(0.001)


def _leader(pid: int) -> int:
    """The process group that the command of `pid` leads (behind an init its child does), or 0."""
    leader = pid
    if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith(_INIT):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        leader = int(children[0]) if children else 0
    return leader if leader and os.getpgid(leader) == leader else 0


def send(call: Call) -> dict[str, Any]:
    """Send `signal` to the process `pid`, with `group` to its whole process group, as a terminal
    does. Gives `sent`: false if it was gone.
    """
    pid, number = call.args["pid"], call.args["signal"]
    with contextlib.suppress(ProcessLookupError), _process(pid) as process:
        _await_program(pid)
        if call.args.get("group") and (leader := _leader(pid)):
            os.killpg(leader, number)
        else:
            signal.pidfd_send_signal(process, number)
        return {"sent": True}
    return {"sent": False}


def stop(call: Call) -> dict[str, Any]:
    """Send `signal` to `pid`, and KILL after `grace` seconds. Gives `killed`."""
    with contextlib.suppress(ProcessLookupError), _process(call.args["pid"]) as process:
        _await_program(call.args["pid"])
        signal.pidfd_send_signal(process, call.args["signal"])
        if not _ended(process, call.args["grace"]):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            _ended(process, None)
            return {"killed": True}
    return {"killed": False}


def limit_time(call: Call) -> dict[str, Any]:
    """Kill `pid` after `seconds`, unless it ends before; `folder` is the sandbox's.

    Runs as long as the sandbox does.
    """
    with contextlib.suppress(ProcessLookupError), _process(call.args["pid"]) as process:
        call.send({"watching": True})
        if not _ended(process, call.args["seconds"]):
            (Path(call.args["folder"]) / REASON).write_text("timeout", encoding="ascii")
            signal.pidfd_send_signal(process, signal.SIGKILL)
    return {}
