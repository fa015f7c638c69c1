"""Line numbers of a TOML document's keys, found by a second look at a text that already parsed.

The parser keeps no positions. This scan is only made when there is something to report.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.recipes.findings import KeyPath

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_BASIC: Final = re.compile(r'"(?:\\.|[^"\\])*"')
_LITERAL: Final = re.compile(r"'[^']*'")
_MULTI_BASIC: Final = re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.DOTALL)
_MULTI_LITERAL: Final = re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL)
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")


def positions(text: str) -> Mapping[KeyPath, tuple[int, int]]:
    """Key path -> (start, end) offsets of where it is written: a header, a key with its value, an
    item. `text` must be valid TOML; where the scan loses its way it stops with what it has."""
    scan = _Scan(text)
    with suppress(_LostError, IndexError):
        scan.document()
    return scan.found


def line_of(text: str, where: KeyPath) -> int:
    """The line (from 1) of the longest part of `where` that is written; 0 if none is."""
    found = positions(text)
    for length in range(len(where), 0, -1):
        span = found.get(where[:length])
        if span is not None:
            return line_at(text, span[0])
    return 0


def line_at(text: str, offset: int) -> int:
    """The line (from 1) of an offset."""
    return text.count("\n", 0, offset) + 1


class _LostError(Exception):
    """The text is no TOML that this scan understands."""


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[KeyPath, tuple[int, int]] = {}
        self.counts: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text):
                return
            table = self.header() if self.text[self.at] == "[" else self.pair(table)

    def header(self) -> KeyPath:
        start = self.at
        listed = self.text.startswith("[[", start)
        self.at += 2 if listed else 1
        keys = self.keys()
        self.at += 2 if listed else 1
        where: KeyPath = ()
        for position, key in enumerate(keys):
            where = (*where, key)
            self.note(where, start, self.at)
            last = position == len(keys) - 1
            if last and listed:
                self.counts[where] = self.counts.get(where, -1) + 1
            if where in self.counts and (listed or not last):
                where = (*where, self.counts[where])
                self.note(where, start, self.at)
        return where

    def pair(self, table: KeyPath) -> KeyPath:
        start = self.at
        where = (*table, *self.keys())
        self.expect("=")
        self.value(where)
        for length in range(len(table) + 1, len(where) + 1):
            self.note(where[:length], start, self.at)
        return table

    def value(self, where: KeyPath) -> None:
        self.skip(_SPACE)
        first = self.text[self.at]
        if first == "[":
            self.items(where)
        elif first == "{":
            self.inline(where)
        elif first in "\"'":
            self.string()
        else:
            self.skip(_SCALAR)

    def items(self, where: KeyPath) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(_BLANK)
            if self.text[self.at] == "]":
                self.at += 1
                return
            start = self.at
            self.value((*where, index))
            self.note((*where, index), start, self.at)
            index += 1
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
            elif self.text[self.at] != "]":
                raise _LostError

    def inline(self, where: KeyPath) -> None:
        self.at += 1
        while True:
            self.skip(_BLANK)
            if self.text[self.at] == "}":
                self.at += 1
                return
            self.pair(where)
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
            elif self.text[self.at] != "}":
                raise _LostError

    def keys(self) -> list[str]:
        names: list[str] = []
        while True:
            self.skip(_SPACE)
            names.append(self.key())
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return names
            self.at += 1

    def key(self) -> str:
        start = self.at
        if self.text[start] in "\"'":
            self.string()
            return self.text[start + 1 : self.at - 1]
        self.skip(_BARE)
        if self.at == start:
            raise _LostError
        return self.text[start : self.at]

    def string(self) -> None:
        for pattern in (_MULTI_BASIC, _MULTI_LITERAL, _BASIC, _LITERAL):
            match = pattern.match(self.text, self.at)
            if match:
                self.at = match.end()
                return
        raise _LostError

    def note(self, where: KeyPath, start: int, end: int) -> None:
        self.found.setdefault(where, (start, end))

    def expect(self, mark: str) -> None:
        self.skip(_SPACE)
        if self.text[self.at] != mark:
            raise _LostError
        self.at += 1

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
