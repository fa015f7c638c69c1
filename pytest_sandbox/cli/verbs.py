"""All verbs as one click command."""

from __future__ import annotations

import importlib
import sys

import click

from pytest_sandbox.cli import VERBS
from pytest_sandbox.errors import SandboxError, UsageError


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        found = importlib.import_module(f"pytest_sandbox.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-sandbox")
def _group() -> None:
    """Prove that software installs: look at recipes, plans, images and engines.

    Run images without a daemon, too: run, ps, logs, exec, stop, kill, wait, rm.
    """


def main() -> None:
    """Run the command line: exit status 2 for a wrong call, 1 for what was found wrong."""
    try:
        _group.main(standalone_mode=False, prog_name="pytest-sandbox")
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(wrong.exit_code)
    except click.Abort:
        sys.exit(130)
    except UsageError as wrong:
        click.echo(f"pytest-sandbox: {wrong.what}; next: {wrong.next_step}", err=True)
        sys.exit(2)
    except SandboxError as wrong:
        click.echo(f"pytest-sandbox: {wrong}", err=True)
        if wrong.details:
            click.echo(wrong.details, err=True)
        sys.exit(1)
    except OSError as wrong:
        where = f": {wrong.filename}" if wrong.filename else ""
        click.echo(f"pytest-sandbox: {wrong.strerror or wrong}{where}", err=True)
        sys.exit(1)
