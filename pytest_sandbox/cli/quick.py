"""Reads the command lines of `run` and `exec` without click.

It knows what is right and leaves everything else (wrong options, `--help`) to click, which then says
what is wrong.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.cli.options import PROCESS, RUN, Option
from pytest_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLES: Final = {
    "run": (RUN, "image", "pytest_sandbox.cli.running"),
    "exec": (PROCESS, "name", "pytest_sandbox.cli.executing"),
}
"""Of each verb: its options, what its first argument is, and the module that performs it."""


def call(verb: str, words: Sequence[str]) -> None:
    """Do what the command line says and leave with its exit status; return if it is not quite right
    or asks for help.
    """
    table, first, module = TABLES[verb]
    options = read(table, first, words)
    if options is None:
        return
    gc.disable()  # this process imports, starts another one, and copies: there is nothing to collect
    try:
        status = importlib.import_module(module).perform(options)
    except UsageError as wrong:
        from pytest_sandbox.cli.containers import complain

        complain(wrong)
        status = 2
    except KeyboardInterrupt:
        status = 130
    leave(status)


def leave(status: int) -> None:
    """End this process, without tidying up what the kernel takes back anyway."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def read(table: Sequence[Option], first: str, words: Sequence[str]) -> dict[str, Any] | None:
    """The options, the first argument under `first`, and what is behind it as `command`; None for a
    command line that click must judge.
    """
    known = {flag: (option, True) for option in table for flag in option.flags}
    known |= {option.off: (option, False) for option in table if option.off}
    found = {option.key: option.unset() for option in table}
    if any(os.environ.get(option.variable) for option in table if option.variable):
        return None
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if not word.startswith("--"):  # -it, -e NAME, -eNAME
            name, value, equals = word[:2], word[2:], ""
            while name in known and known[name][0].kind == "flag" and value:
                found[known[name][0].key] = known[name][1]
                name, value = f"-{value[0]}", value[1:]
        if name not in known:
            return None
        option, on = known[name]
        if option.kind == "flag":
            if equals:
                return None
            found[option.key] = on
            continue
        if not equals and not value:
            if at == len(words):
                return None
            value = words[at]
            at += 1
        if option.choices and value not in option.choices:
            return None
        found[option.key] = (*found[option.key], value) if option.kind == "list" else value
    if at == len(words):
        return None
    found[first] = words[at]
    found["command"] = tuple(words[at + 1 :])
    return found
