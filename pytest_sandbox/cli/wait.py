"""`pytest-sandbox wait`: stay until sandboxes have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pytest_sandbox.cli.containers import each

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.containers.folder import Container


@click.command("wait")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def command(names: tuple[str, ...]) -> None:
    """Wait for the end of each sandbox and print its exit status."""

    def wait(container: Container) -> str:
        from pytest_sandbox.runtimes.oci.containers.reaching import Waiter

        with Waiter(container) as waiter:
            return str(waiter.wait().code)

    each(names, wait)
