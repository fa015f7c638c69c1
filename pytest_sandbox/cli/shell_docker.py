"""A shell in a kept sandbox on a Docker-compatible engine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.limits import Limits
    from pytest_sandbox.runtimes.base import ImageInfo
    from pytest_sandbox.runtimes.docker import DockerRuntime
    from pytest_sandbox.runtimes.docker_stream import Channel


def enter(
    engine: DockerRuntime, info: ImageInfo, script: str, env: Mapping[str, str], network: str
) -> int:
    """Start a container from a kept image and connect this process's streams; its exit status.

    Raises RuntimeUnavailable.
    """
    import docker.errors

    from pytest_sandbox.runtimes.docker_stream import StreamRefused, open_stream

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    client = engine.client
    container = ""
    try:
        settings = _settings(info, script, env, network, terminal=terminal)
        name = f"pytest-sandbox-shell-{secrets.token_hex(4)}"
        container = client.create_container_from_config(settings, name)["Id"]
        channel = open_stream(
            engine.endpoint,
            client,
            f"/containers/{container}/attach",
            query={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1},
        )
        try:
            client.start(container)
            if terminal:
                _talk(client, container, channel)
            else:
                _feed(channel)
        finally:
            channel.close()
        return int(client.wait(container)["StatusCode"])
    except (docker.errors.APIError, StreamRefused) as exc:
        why = getattr(exc, "explanation", None) or exc
        msg = f"the engine could not start a shell from {info.name}: {why}"
        raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc
    finally:
        if container:
            engine.remove_container(container)


def _settings(
    info: ImageInfo, script: str, env: Mapping[str, str], network: str, *, terminal: bool
) -> dict[str, Any]:
    from pytest_sandbox.limits import PROFILES
    from pytest_sandbox.runtimes.owner import current_owner, owner_labels

    limits: Limits = PROFILES["build"]
    owner = current_owner(f"shell-{secrets.token_hex(4)}")
    return {
        "Image": info.name,
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": [script],
        "Env": [f"{name}={value}" for name, value in env.items()],
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Tty": terminal,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": owner_labels(owner, time.time()),
        "HostConfig": {
            "Init": True,
            "Memory": limits.memory,
            "MemorySwap": limits.memory,
            "PidsLimit": limits.pids,
            "NetworkMode": network,
            "LogConfig": {"Type": "none", "Config": {}},
        },
    }


def _talk(client: Any, container: str, channel: Channel) -> None:
    """Connect the terminal until the shell ends; the terminal is restored whatever happens."""
    import termios
    import tty

    def resize(*_signal: object) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        with contextlib.suppress(Exception):
            client.resize(container, height=size.lines, width=size.columns)

    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(keyboard)
    handler = signal.signal(signal.SIGWINCH, resize)
    try:
        tty.setraw(keyboard)
        resize()
        _pump(keyboard, channel)
        while data := channel.recv(1 << 16):
            _write(screen, data)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)


def _feed(channel: Channel) -> None:
    """Run the script on standard input; its output goes to standard output and error."""
    _pump(sys.stdin.fileno(), channel)
    buffer = b""
    while data := channel.recv(1 << 16):
        buffer += data
        while len(buffer) >= 8:
            size = int.from_bytes(buffer[4:8], "big")
            if len(buffer) < 8 + size:
                break
            _write(2 if buffer[0] == 2 else 1, buffer[8 : 8 + size])
            buffer = buffer[8 + size :]


def _pump(source: int, channel: Channel) -> None:
    """Send what comes from a descriptor, in a thread that ends with this process."""

    def pump() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 1 << 16):
                channel.sendall(data)
            channel.end_input()

    threading.Thread(target=pump, daemon=True).start()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
