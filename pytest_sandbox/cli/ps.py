"""`pytest-sandbox ps`: the sandboxes that `run` started."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from pytest_sandbox.cli.containers import swept
from pytest_sandbox.errors import printable

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.oci.containers.folder import Container

_HEADINGS = ("ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME")
_WIDEST = 40


@click.command("ps")
@click.option("-a", "--all", "ended", is_flag=True, help="Those that have ended, too.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids alone.")
@click.option("--no-trunc", "whole", is_flag=True, help="Print ids and commands whole.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(*, ended: bool, quiet: bool, whole: bool, as_json: bool) -> None:
    """List sandboxes, the youngest first; clear away what killed ones have left."""
    shown = [one for one in swept().all() if ended or one.status in {"created", "running"}]
    for one in shown if as_json else ():
        click.echo(json.dumps(description(one)))
    for one in shown if quiet and not as_json else ():
        click.echo(one.id if whole else one.short)
    if not as_json and not quiet:
        _table([_row(one, whole=whole) for one in shown])


def description(one: Container) -> dict[str, Any]:
    """A sandbox as JSON shows it."""
    from pytest_sandbox.runtimes.oci.containers.log import LOG

    found = one.record.document()
    owner = found.pop("owner")
    found.pop("client")
    end = one.end.document() if one.end else None
    return {
        "id": found.pop("id"),
        "name": found.pop("name"),
        "status": one.status,
        "exit_code": end["code"] if end else None,
        "reason": end["reason"] if end else "",
        "ended": end["time"] if end else None,
        **found,
        "supervisor": owner["pid"],
        "log": (one.folder / LOG).exists(),
    }


def _row(one: Container, *, whole: bool) -> tuple[str, ...]:
    record = one.record
    words = " ".join(record.command)
    if not whole and len(words) > _WIDEST:
        words = words[: _WIDEST - 1] + "…"
    return (
        one.id if whole else one.short,
        record.image,
        words,
        f"{_ago(time.time() - record.created)} ago",
        _status(one),
        ", ".join(record.ports),
        record.name,
    )


def _status(one: Container) -> str:
    status = one.status
    if one.end is not None:
        why = f", {one.end.reason}" if one.end.reason else ""
        return f"exited ({one.end.code}{why}) {_ago(time.time() - one.end.time)} ago"
    return f"up {_ago(time.time() - one.record.started)}" if status == "running" else status


def _ago(seconds: float) -> str:
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {word}s"
    return f"{max(int(seconds), 0)} seconds"


def _table(rows: list[tuple[str, ...]]) -> None:
    cells = [_HEADINGS, *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    for row in cells:
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())
