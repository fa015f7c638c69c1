"""Ending sandboxes from another process: signals, stopping, removing."""

from __future__ import annotations

import contextlib
import signal
from typing import Final

from pytest_sandbox.errors import RuntimeUnavailable, SandboxError
from pytest_sandbox.runtimes.oci.containers.folder import Container, NotRunning, remove_folder
from pytest_sandbox.runtimes.oci.containers.reaching import Waiter, ask

_CLEAR: Final = 60.0
"""A killed sandbox is gone within this many seconds, or its supervisor is not well."""


def signal_sandbox(container: Container, number: int) -> None:
    """Send its first process a signal. Raises NotRunning."""
    if not ask(container, "send", {"signal": number})["sent"]:
        raise NotRunning(container.refresh())


def stop_sandbox(container: Container, *, grace: float) -> None:
    """Send its stop signal, and KILL after `grace` seconds; returns when it is gone. One that has
    ended is no error.
    """
    with Waiter(container) as waiter:
        with contextlib.suppress(NotRunning):
            words = {"signal": container.record.stop_signal, "grace": grace}
            ask(container, "stop", words)
        _gone(container, waiter)


def remove_sandbox(container: Container, *, force: bool) -> None:
    """Remove it. `force` kills one that runs; else that is an error."""
    if container.status in {"created", "running"}:
        if not force:
            msg = f"sandbox {container.called} is running"
            step = f"pytest-sandbox stop {container.called} first, or rm -f"
            raise SandboxError(msg, next_step=step)
        with Waiter(container) as waiter:
            with contextlib.suppress(NotRunning):
                ask(container, "send", {"signal": int(signal.SIGKILL)})
            _gone(container, waiter)
    remove_folder(container.folder)


def _gone(container: Container, waiter: Waiter) -> None:
    try:
        waiter.wait(_CLEAR)
    except TimeoutError:
        msg = f"sandbox {container.called} was killed and is still there after {_CLEAR:g} s"
        raise RuntimeUnavailable(msg, next_step="look what its processes wait for") from None
