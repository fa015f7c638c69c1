"""`pytest-sandbox image`: its verbs stand in two modules; only the one at hand is loaded."""

from __future__ import annotations

import importlib
from typing import Final

import click

_MADE: Final = "pytest_sandbox.cli.image_made"
_STORE: Final = "pytest_sandbox.cli.image_store"
VERBS: Final = {
    "list": (_MADE, "list_command"),
    "build": (_MADE, "build"),
    "bootstrap": (_MADE, "bootstrap"),
    "pull": (_STORE, "pull_command"),
    "push": (_STORE, "push_command"),
    "import": (_STORE, "import_command"),
    "export": (_STORE, "export_command"),
    "unpack": (_STORE, "unpack_command"),
    "verify": (_STORE, "verify_command"),
    "rm": (_STORE, "rm_command"),
    "prune": (_MADE, "prune_command"),
}
"""Where each verb's click command is."""


class _Images(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name]
        found = getattr(importlib.import_module(module), name)
        assert isinstance(found, click.Command)
        return found


@click.command("image", cls=_Images)
def command() -> None:
    """Build, list and prune the images that sandboxes start from; pull, push, import, export,
    unpack, verify and remove those of the store."""
