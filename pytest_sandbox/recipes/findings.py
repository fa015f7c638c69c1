"""Finding: one thing that lint has to say about a recipe."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import msgspec

from pytest_sandbox.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
"""Where something stands in a document: table names, keys, and indexes (from 0) of lists."""

Severity = Literal["error", "warning"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`line` counts from 1 (0: unknown); `suggestion` is what was probably meant, or empty."""

    path: str
    line: int
    key: str
    severity: Severity
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.path or 'recipe'}:{self.line}" if self.line else self.path or "recipe"
        key = f"{self.key}: " if self.key else ""
        meant = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        line = f"{where}: {self.severity}: {key}{self.message}{meant}"
        return printable(line).replace("\n", "\\n")


class Remark(msgspec.Struct, frozen=True):
    """A finding before its line is known."""

    where: KeyPath
    severity: Severity
    message: str
    suggestion: str = ""


def key_text(where: KeyPath) -> str:
    """`steps[2].when.os` for ("steps", 1, "when", "os"): indexes are shown from 1."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += f".{part}" if text else part
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or empty."""
    found = get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else ""
