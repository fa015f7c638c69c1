"""`pytest-sandbox rm`: remove what is left of sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pytest_sandbox.cli.containers import each

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.containers.folder import Container


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Kill those that run.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def command(names: tuple[str, ...], *, force: bool) -> None:
    """Remove the record and the log of each sandbox; print its name."""

    def remove(container: Container) -> str:
        from pytest_sandbox.runtimes.oci.containers.stopping import remove_sandbox

        remove_sandbox(container, force=force)
        return container.called

    each(names, remove)
