"""`pytest-sandbox shell ID`: enter a copy of a sandbox that was kept."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING

import click

from pytest_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_sandbox.runtimes.base import ImageInfo, Runtime
    from pytest_sandbox.settings import Settings

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
@click.option("--runtime", metavar="NAME", help="oci, docker, podman, or a URL of an engine")
def command(
    identity: str | None, *, listing: bool, remove: bool, network: str, runtime: str | None
) -> None:
    """Enter a copy of the kept sandbox ID, with the environment and the folder of its test.

    Every shell starts from the files as they were kept; what it changes is gone when it ends.
    Without a terminal the script on standard input is run. The exit status is the shell's.
    """
    from pytest_sandbox.cli.project import cli_settings

    settings = cli_settings(runtime=runtime)
    engine = _engine(settings)
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
        sys.exit(enter(engine, info, network, settings))
    finally:
        engine.close()


def _engine(settings: Settings) -> Runtime:
    from pytest_sandbox.runtimes.detect import find_runtime

    engine = find_runtime(settings.runtime, os.environ, settings)
    if engine.name not in {"docker", "oci"}:
        msg = f"the runtime {engine.name} keeps no sandboxes"
        raise UsageError(msg, next_step="use --runtime oci or --runtime docker")
    return engine


def _kept(engine: Runtime) -> Iterator[tuple[str, ImageInfo]]:
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


def enter(engine: Runtime, info: ImageInfo, network: str, settings: Settings) -> int:
    """Start a sandbox from a kept image and connect this process's terminal; its exit status."""
    from pytest_sandbox.runtimes.docker import DockerRuntime

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    script = _INTERACTIVE if terminal else _SCRIPT
    env: dict[str, str] = {}
    with contextlib.suppress(ValueError, TypeError):
        env = dict(json.loads(info.labels.get("org.pytest-sandbox.env", "{}")))
    env["PYTEST_SANDBOX_CWD"] = info.labels.get("org.pytest-sandbox.cwd") or "/"
    if terminal:
        env["TERM"] = os.environ.get("TERM", "xterm")
    if isinstance(engine, DockerRuntime):
        from pytest_sandbox.cli import shell_docker

        return shell_docker.enter(engine, info, script, env, network)
    from pytest_sandbox.cli import shell_oci

    engine.close()
    return shell_oci.enter(info, script, env, network, settings, terminal=terminal)
