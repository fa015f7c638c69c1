"""`pytest-sandbox stop`: ask sandboxes to end, and make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pytest_sandbox.cli.containers import each

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.containers.folder import Container


@click.command("stop")
@click.option(
    "-t",
    "--time",
    "seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Kill it after so long.",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def command(names: tuple[str, ...], *, seconds: float) -> None:
    """Send each sandbox its stop signal (TERM), and KILL after 10 seconds; print its name.

    One that has ended already is no error.
    """

    def stop(container: Container) -> str:
        from pytest_sandbox.runtimes.oci.containers.stopping import stop_sandbox

        stop_sandbox(container, grace=seconds)
        return container.called

    each(names, stop)
