"""All attacks, one after the other, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final

from pytest_sandbox.runtimes.oci.launchers.attacks import (
    devices,
    kernel,
    mounts,
    processes,
    reaching,
    resources,
)
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside

ATTACKS: Final[tuple[Attack, ...]] = (
    *processes.ATTACKS,
    *mounts.ATTACKS,
    *devices.ATTACKS,
    *kernel.ATTACKS,
    *resources.ATTACKS,
    *reaching.ATTACKS,
)
"""Every attack, in the order of the table in docs/security.md."""
_SECONDS: Final = 20
_MOST: Final = 4000


def run_all(outside: Outside | None = None) -> list[str]:
    """Try every attack as the calling process: with its ids, capabilities, filter and namespaces.

    Gives `name: what was possible` for each that was; an attack that could not be tried to its end
    counts as possible. It needs nothing of the root file system but /proc, imports nothing, and
    forks.
    """
    found = []
    for attack in ATTACKS:
        if attack.applies():
            told = attempt(attack, outside or Outside())
            if told is not None:
                found.append(f"{attack.name}: {told}")
    return found


def attempt(attack: Attack, outside: Outside) -> str | None:
    """Try one attack in a child of this process; see Attack.run."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setsid()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_SECONDS)
            _tell(writer, attack, outside._replace(kept=outside.kept | {writer}))
        finally:
            os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)  # what it left behind
    os.set_blocking(reader, False)
    told = b""
    with contextlib.suppress(BlockingIOError):
        told = os.read(reader, _MOST)
    os.close(reader)
    if told == b".":
        return None
    code = os.waitstatus_to_exitcode(status)
    return told.decode(errors="replace") or f"it could not be tried to its end (status {code})"


def _tell(writer: int, attack: Attack, outside: Outside) -> None:
    try:
        text = attack.run(outside) or "."
    except Exception as error:
        text = f"it could not be tried: {type(error).__name__}: {error}"
    os.write(writer, text.encode(errors="replace")[:_MOST])
