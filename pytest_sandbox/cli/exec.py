"""`pytest-sandbox exec`: one more command in a running sandbox."""

from __future__ import annotations

import sys
from typing import Any

import click

from pytest_sandbox.cli.executing import perform
from pytest_sandbox.cli.options import PROCESS, with_options


@click.command("exec", context_settings={"allow_interspersed_args": False})
@with_options(PROCESS)
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(**options: Any) -> None:
    """Run a command in a running sandbox.

    Everything behind NAME is the command's; one `--` directly behind it is dropped. The exit status
    is the command's own; 125: it could not be started, 126: it cannot be executed, 127: there is
    none.
    """
    sys.exit(perform(options))
