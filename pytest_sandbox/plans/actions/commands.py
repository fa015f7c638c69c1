"""run_command and set_env."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

from pytest_sandbox.plans.layout import SEARCH_PATH
from pytest_sandbox.plans.model import TOOLS_HOME, Command, Notice, Operation, WriteFile

if TYPE_CHECKING:
    from pytest_sandbox.plans.actions.context import Reader

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def run_command(reader: Reader) -> tuple[Operation, ...]:
    """The recipe's own shell text; it may use the network, as the registry's own table says."""
    command = reader.required("command")
    if "\0" in command:
        raise reader.fault(key="command", what="a NUL cannot be in a command")
    if reader.params.get("requires_sudo") is True:
        return (Notice(text=f"skipped, it requires sudo: {command}"),)
    layout = reader.context.layout
    return (
        Command(
            argv=("/bin/sh", "-c", command),
            cwd=reader.work(reader.text("working_dir") or ".", "working_dir"),
            env={"PATH": f"{layout.staging}/bin:{SEARCH_PATH}"},
            recipe_text=True,
            network=True,
        ),
    )


def set_env(reader: Reader) -> tuple[Operation, ...]:
    """Exports for the shells that source share/shell.d."""
    layout = reader.context.layout
    lines = [f"export {name}={_single(value)}\n" for name, value in variables(reader)]
    stem = f"{TOOLS_HOME}/share/shell.d/00-env-{layout.tool}@{layout.version or 'unversioned'}"
    return tuple(
        WriteFile(path=f"{stem}.{shell}", text="".join(lines)) for shell in ("bash", "zsh")
    )


def variables(reader: Reader) -> list[tuple[str, str]]:
    """The names and values of a set_env step. Raises PlanError."""
    entries = reader.params.get("vars")
    if not isinstance(entries, list) or not entries:
        raise reader.fault(key="vars", what="a list of tables with name and value is required")
    found = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        value = entry.get("value") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise reader.fault(key="vars", what=f"{name!r} is no name of a variable")
        if not isinstance(value, str) or "\n" in value or "\0" in value:
            raise reader.fault(key="vars", what=f"the value of {name} is not one line of text")
        found.append((name, value))
    return found


def _single(value: str) -> str:
    quoted = shlex.quote(value)
    return quoted if quoted.startswith("'") else f"'{value}'"
