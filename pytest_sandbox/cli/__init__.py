"""The `pytest-sandbox` command, one module a verb, imported when the verb is called.

`run` and `exec` are called often and for short commands: their usual command lines are read without
click, which takes longer to import than a sandbox takes to start (see quick.py).
"""

from __future__ import annotations

import sys
from typing import Final

VERBS: Final = (
    "inspect",
    "plan",
    "spec",
    "lint",
    "migrate",
    "image",
    "shell",
    "doctor",
    "run",
    "ps",
    "logs",
    "exec",
    "stop",
    "kill",
    "wait",
    "rm",
)
"""Each is a module of this package with a click command (or group) called `command`."""


def main() -> None:
    """Run the command line: exit status 2 for a wrong call, 1 for what was found wrong."""
    if sys.argv[1:2] in (["run"], ["exec"]):
        from pytest_sandbox.cli import quick

        quick.call(sys.argv[1], sys.argv[2:])
    from pytest_sandbox.cli.verbs import main as with_click

    with_click()
