"""One command in a sandbox of its own, run to its end; nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.runtimes.oci import leavings
from pytest_sandbox.runtimes.owner import current_owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.supervisor import Channel
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

RUN: Final = "once"
"""What they are called where sandboxes name the run that they belong to."""
_START: Final = "pytest_sandbox.runtimes.oci.launch:start"


def run_once(
    runtime: OciRuntime,
    image: Image,
    argv: Sequence[str],
    *,
    stdio: Sequence[int] = (),
    **values: Any,
) -> int:
    """Run a command in a new sandbox; its exit status, as a shell tells it (128 + n for signal n).

    `stdio` are descriptors for its stdin, stdout and stderr, which stay open; without them it reads
    and writes nothing. `values` are further fields of the Order (network, env, user, ...). When
    this returns, no process, mount or cgroup of the sandbox is left; its files are in the store's
    trash, which the supervisor is emptying. Raises SandboxError where it cannot be started.
    """
    root, name = runtime.store.root, f"ps-{RUN}-{os.getpid()}-{secrets.token_hex(6)}"
    order = runtime.machine.order(
        image,
        name,
        argv=tuple(argv),
        notes=(str(root / "owners" / name), str(root / "uses" / f"{name}.json")),
        **{"hostname": "sandbox", **values},
    )
    leavings.note(root, name, current_owner(RUN))
    try:
        runtime.store.use_layers(name, image.keys)
        with contextlib.ExitStack() as stack:
            streams = tuple(stdio)
            if not streams:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, null)
                streams = (null, null, null)
            channel = runtime.supervisor.open(_START, order.document(), streams)
        with contextlib.closing(channel):
            channel.result()
            return _end(channel)
    except BaseException:
        leavings.forget_failed(root, name)
        raise


def _end(channel: Channel) -> int:
    """Wait until it is cleared away; the status."""
    status: int | None = None
    while (received := channel.receive()) is not None:
        message = received[0]
        status = message.get("exit", status)
        if "gone" in message or "cleared" in message.get("said", {}):
            break
    if status is None:
        msg = "the supervisor of the sandbox is gone, and the sandbox with it"
        raise RuntimeUnavailable(msg, next_step="look whether it was killed")
    return status if status >= 0 else 128 - status
