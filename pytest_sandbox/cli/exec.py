"""`pytest-sandbox exec`: one more command in a running sandbox."""

from __future__ import annotations

import sys

import click

from pytest_sandbox.cli.containers import (
    VERBATIM,
    all_containers,
    command_words,
    engine_errors,
    environment_options,
    session,
    streams_for,
    variables,
    with_options,
)
from pytest_sandbox.errors import UsageError


@click.command("exec", context_settings=VERBATIM)
@with_options(environment_options)
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    name: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    user: str,
    workdir: str,
    interactive: bool,
    tty: bool,
) -> None:
    """Run a command in a running sandbox.

    Everything behind NAME is the command's; one `--` directly behind it is dropped. The exit status
    is the command's own; 125: it could not be started, 126: it cannot be executed, 127: there is
    none.
    """
    words = command_words(command)
    if not words:
        msg = "there is no command behind the name of the sandbox"
        raise UsageError(msg, next_step=f"write it: pytest-sandbox exec {name} COMMAND")
    if workdir and not workdir.startswith("/"):
        msg = f"-w {workdir!r} is not absolute"
        raise UsageError(msg, next_step="write it from / on")
    changes = variables(env, env_files)
    streams = streams_for(interactive=interactive, tty=tty, whole=False)
    from pytest_sandbox.runtimes.oci.containers.execute import execute

    with engine_errors(), session() as signals:
        try:
            status = execute(
                all_containers().find(name),
                words,
                streams,
                signals,
                env=changes,
                user=user,
                cwd=workdir,
                tty=tty,
            )
        finally:
            streams.close()
    sys.exit(status)
