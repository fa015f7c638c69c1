"""Reads the command lines of `run` and `exec` without click.

It knows what is right and leaves everything else (wrong options, `--help`) to click, which then
says what is wrong.
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
    gc.disable()  # it imports, starts another process, and copies: there is nothing to collect
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


class _Other(Exception):
    """A command line that click must judge."""


def read(table: Sequence[Option], first: str, words: Sequence[str]) -> dict[str, Any] | None:
    """The options, the first argument under `first`, and what is behind it as `command`; None for a
    command line that click must judge.
    """
    known = {flag: (option, True) for option in table for flag in option.flags}
    known |= {option.off: (option, False) for option in table if option.off}
    found = {option.key: option.unset() for option in table}
    rest = list(reversed(words))
    try:
        while rest and rest[-1].startswith("-") and rest[-1] != "-":
            word = rest.pop()
            if word == "--":
                break
            _take(word, rest, known, found)
    except _Other:
        return None
    if not rest:
        return None
    found[first] = rest.pop()
    found["command"] = tuple(reversed(rest))
    return found


def _take(
    word: str,
    rest: list[str],
    known: dict[str, tuple[Option, bool]],
    found: dict[str, Any],
) -> None:
    """One word, with its value from `rest` if it has one there."""
    name, equals, value = word.partition("=")
    if not word.startswith("--"):  # -it, -e NAME, -eNAME
        name, value, equals = word[:2], word[2:], ""
        while name in known and known[name][0].kind == "flag" and value:
            found[known[name][0].key] = known[name][1]
            name, value = f"-{value[0]}", value[1:]
    if name not in known:
        raise _Other
    option, on = known[name]
    if option.kind == "flag":
        if equals:
            raise _Other
        found[option.key] = on
        return
    if not equals and not value:
        if not rest:
            raise _Other
        value = rest.pop()
    if option.choices and value not in option.choices:
        raise _Other
    found[option.key] = (*found[option.key], value) if option.kind == "list" else value
