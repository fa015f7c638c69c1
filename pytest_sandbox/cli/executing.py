"""What `pytest-sandbox exec` does with its options."""

from __future__ import annotations

from typing import Any

from pytest_sandbox.cli.containers import (
    all_containers,
    command_words,
    engine_errors,
    streams_for,
    variables,
)
from pytest_sandbox.errors import UsageError


def perform(options: dict[str, Any]) -> int:
    """Run the command; its exit status. Raises UsageError."""
    name, words = options["name"], command_words(options["command"])
    if not words:
        msg = "there is no command behind the name of the sandbox"
        raise UsageError(msg, next_step=f"write it: pytest-sandbox exec {name} COMMAND")
    if options["workdir"] and not options["workdir"].startswith("/"):
        msg = f"-w {options['workdir']!r} is not absolute"
        raise UsageError(msg, next_step="write it from / on")
    changes = variables(options["env"], options["env_files"])
    interactive, tty = options["interactive"], options["tty"]
    streams = streams_for(interactive=interactive, tty=tty, whole=False)
    from pytest_sandbox.runtimes.oci.containers.execute import execute
    from pytest_sandbox.runtimes.oci.foreground import Signals

    status = 0
    with engine_errors() as ended, Signals() as signals:
        try:
            status = execute(
                all_containers().find(name),
                words,
                streams,
                signals,
                env=changes,
                user=options["user"],
                cwd=options["workdir"],
                tty=tty,
            )
        finally:
            streams.close()
    return ended.status or status
