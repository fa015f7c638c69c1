"""`pytest-sandbox kill`: send sandboxes a signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pytest_sandbox.cli.containers import each

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.containers.folder import Container


@click.command("kill")
@click.option("-s", "--signal", "name", default="KILL", show_default=True, metavar="SIGNAL")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def command(names: tuple[str, ...], *, name: str) -> None:
    """Send each sandbox's first process a signal (a name or a number); print the sandbox's name."""
    from pytest_sandbox.oci.spec.process import signal_number

    number = signal_number(name)

    def kill(container: Container) -> str:
        from pytest_sandbox.runtimes.oci.containers.stopping import signal_sandbox

        signal_sandbox(container, number)
        return container.called

    each(names, kill)
