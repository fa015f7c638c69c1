"""`pytest-sandbox shell ID`: enter a copy of a sandbox that was kept."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from pytest_sandbox.errors import RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_sandbox.limits import Limits
    from pytest_sandbox.runtimes.base import ImageInfo
    from pytest_sandbox.runtimes.docker import DockerRuntime
    from pytest_sandbox.runtimes.docker_stream import Channel

_ENTER = 'cd "$PYTEST_SANDBOX_CWD" 2>/dev/null || cd /; unset PYTEST_SANDBOX_CWD; '
_INTERACTIVE = _ENTER + "command -v bash >/dev/null 2>&1 && exec bash -i; exec sh -i"
_SCRIPT = _ENTER + "exec sh -s"


@click.command("shell")
@click.argument("identity", metavar="ID", required=False)
@click.option("--list", "listing", is_flag=True, help="List the sandboxes that are kept.")
@click.option("--rm", "remove", is_flag=True, help="Remove the kept sandbox instead.")
@click.option(
    "--network",
    type=click.Choice(["none", "bridge", "host"]),
    default="none",
    help="What the shell can reach (none).",
)
@click.option("--runtime", metavar="NAME", help="docker, podman, or a URL of an engine")
def command(
    identity: str | None, *, listing: bool, remove: bool, network: str, runtime: str | None
) -> None:
    """Enter a copy of the kept sandbox ID, with the environment and the folder of its test.

    Every shell starts from the files as they were kept; what it changes is gone when it ends.
    Without a terminal the script on standard input is run. The exit status is the shell's.
    """
    from pytest_sandbox.cli.configuration import cli_settings

    engine = _engine(cli_settings(runtime=runtime).runtime)
    try:
        kept = dict(_kept(engine))
        if listing:
            _list(kept)
            return
        if not identity:
            msg = "no sandbox was named"
            raise UsageError(msg, next_step="give an ID, or --list to see them")
        info = kept.get(identity.rpartition(":")[2])
        if info is None:
            known = ", ".join(kept) or "none is kept"
            msg = f"no kept sandbox {identity!r} (there are: {known})"
            raise UsageError(msg, next_step="keep some with pytest --sandbox-keep=failed")
        if remove:
            engine.remove_image(info.name)
            click.echo(f"removed {info.name}")
            return
        sys.exit(enter(engine, info, network))
    finally:
        engine.close()


def _engine(name: str) -> DockerRuntime:
    from pytest_sandbox.runtimes.detect import find_runtime
    from pytest_sandbox.runtimes.docker import DockerRuntime

    engine = find_runtime(name, os.environ)
    if not isinstance(engine, DockerRuntime):
        msg = f"the runtime {engine.name} keeps no sandboxes"
        raise UsageError(msg, next_step="use --runtime docker")
    return engine


def _kept(engine: DockerRuntime) -> Iterator[tuple[str, ImageInfo]]:
    from pytest_sandbox.runtimes.kept import KEPT

    for info in engine.images():
        repository, _, tag = info.name.rpartition(":")
        if repository.removeprefix("localhost/") == KEPT:
            yield tag, info


def _list(kept: Mapping[str, ImageInfo]) -> None:
    if not kept:
        click.echo("no sandbox is kept; pytest --sandbox-keep=failed keeps those of failed tests")
    for identity, info in kept.items():
        minutes = max(time.time() - info.created, 0) / 60
        target = info.labels.get("org.pytest-sandbox.target", info.arch)
        click.echo(f"{identity}  {target}  {info.size / 1e6:.0f} MB  {minutes:.0f} min ago")


def enter(engine: DockerRuntime, info: ImageInfo, network: str = "none") -> int:
    """Start a container from a kept image and connect this process's terminal; its exit status."""
    import docker.errors

    from pytest_sandbox.runtimes.docker_stream import StreamRefused, open_stream

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    client = engine.client
    container = ""
    try:
        settings = _settings(info, network, terminal=terminal)
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


def _settings(info: ImageInfo, network: str, *, terminal: bool) -> dict[str, Any]:
    from pytest_sandbox.limits import PROFILES
    from pytest_sandbox.runtimes.owner import current_owner, owner_labels

    limits: Limits = PROFILES["build"]
    env: dict[str, str] = {}
    with contextlib.suppress(ValueError, TypeError):
        env = dict(json.loads(info.labels.get("org.pytest-sandbox.env", "{}")))
    env["PYTEST_SANDBOX_CWD"] = info.labels.get("org.pytest-sandbox.cwd") or "/"
    if terminal:
        env["TERM"] = os.environ.get("TERM", "xterm")
    owner = current_owner(f"shell-{secrets.token_hex(4)}")
    return {
        "Image": info.name,
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": [_INTERACTIVE if terminal else _SCRIPT],
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
