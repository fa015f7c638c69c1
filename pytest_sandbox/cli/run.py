"""`pytest-sandbox run`: an image from a registry, run without a daemon."""

from __future__ import annotations

import sys
from typing import Any

import click

from pytest_sandbox.cli.options import RUN, with_options
from pytest_sandbox.cli.running import perform


@click.command("run", context_settings={"allow_interspersed_args": False})
@with_options(RUN)
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(**options: Any) -> None:
    """Run a command in a new sandbox from an image.

    Everything behind IMAGE is the command's; one `--` directly behind it is dropped. The exit
    status is the command's own; 125: it could not be started, 126: it cannot be executed, 127:
    there is none, 124: --timeout, 128 + n: signal n.
    """
    sys.exit(perform(options))
