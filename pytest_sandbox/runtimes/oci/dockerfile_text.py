"""Reads the Dockerfiles that this project writes (images/dockerfile.py), and nothing more.

What another Dockerfile may have besides (variables, stages, flags, JSON forms, here-documents) is
refused by its line and name: read in part, it would make another image than Docker does.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from pytest_sandbox.errors import Blame, BuildFailed
from pytest_sandbox.images.installing import marked_packages

WORDS: Final = ("FROM", "RUN", "COPY", "LABEL", "ENV", "ARG", "USER", "WORKDIR")
_DIRECTIVE: Final = re.compile(r"#\s*(syntax|escape|check)\s*=\s*(\S*)", re.IGNORECASE)
_CONTINUED: Final = re.compile(r"(^|[^\\])\\[ \t]*$")
_HERE: Final = re.compile(r"<<-?\s*[\"']?[A-Za-z_]")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `word` in capitals, `text` all that follows, its lines joined as Docker
    joins them. `line` is where it begins, from 1. `packages` are those that the comment before it
    says it installs.
    """

    line: int
    word: str
    text: str
    packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.word} {self.text}"


@dataclass(frozen=True, slots=True)
class Copy:
    """COPY: `sources` are names of the build context, as they are written."""

    sources: tuple[str, ...]
    target: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile; the first is FROM. Raises BuildFailed."""
    found: list[Instruction] = []
    parts: list[str] = []
    begin = 0
    packages: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        raw = line.removesuffix("\r")
        stripped = raw.strip()
        if stripped.startswith("#"):
            if not found and not parts:
                _check_directive(number, stripped)
            if not parts:
                packages = marked_packages(stripped)
            continue
        if not stripped:
            continue
        if not parts:
            begin = number
        piece = raw if parts else raw.lstrip()
        parts.append(_CONTINUED.sub(r"\1", piece))
        if parts[-1] == piece:
            found.append(_instruction(begin, "".join(parts).strip(), packages))
            parts, packages = [], ()
    if parts:
        found.append(_instruction(begin, "".join(parts).strip(), packages))
    if not found or found[0].word != "FROM":
        raise refused(found[0].line if found else 1, "it does not begin with FROM")
    for instruction in found[1:]:
        if instruction.word == "FROM":
            raise refused(instruction.line, "a second FROM: builds of several stages")
    return found


def refused(line: int, what: str) -> BuildFailed:
    """The error for what is not read here."""
    return BuildFailed(
        f"line {line} of the Dockerfile cannot be built without Docker: {what}",
        blame=Blame.UNSUPPORTED,
        next_step="build it with --sandbox-runtime=docker",
    )


def base_of(instruction: Instruction) -> str:
    """The image that FROM names."""
    words = instruction.text.split()
    if len(words) != 1 or words[0].startswith("--"):
        raise refused(instruction.line, f"FROM with more than an image: {instruction.text[:80]!r}")
    _check_plain(instruction, words[0])
    return words[0]


def shell_text(instruction: Instruction) -> str:
    """What RUN gives to the shell."""
    text = instruction.text
    if text.startswith("--"):
        raise refused(instruction.line, f"RUN with the option {text.split()[0]}")
    if re.match(r'\[\s*"', text):
        raise refused(instruction.line, "RUN with a list of words in place of a command's text")
    if _HERE.search(text):
        raise refused(instruction.line, "RUN with a here-document")
    return text


def copy_of(instruction: Instruction) -> Copy:
    """The files of COPY."""
    words = _words(instruction)
    if words[0].startswith(("--", "[")):
        raise refused(instruction.line, f"COPY with {words[0]!r}")
    if len(words) < 2:
        raise refused(instruction.line, "COPY needs a source and a target")
    for source in words[:-1]:
        if re.search(r"[*?\[]", source) or ".." in source.split("/"):
            raise refused(instruction.line, f"COPY with the source {source!r}")
    return Copy(tuple(words[:-1]), words[-1])


def pairs_of(instruction: Instruction) -> dict[str, str]:
    """The NAME=VALUE of LABEL and ENV."""
    found = {}
    for word in _words(instruction):
        name, equals, value = word.partition("=")
        if not equals or not name:
            what = f"{instruction.word} in another form than NAME=VALUE: {word[:80]!r}"
            raise refused(instruction.line, what)
        found[name] = value
    return found


def argument_of(instruction: Instruction) -> tuple[str, str | None]:
    """The name of ARG and its default, None for none."""
    words = _words(instruction)
    name, equals, value = words[0].partition("=")
    if len(words) != 1 or not _NAME.fullmatch(name):
        raise refused(instruction.line, f"ARG {instruction.text[:80]!r}")
    return name, value if equals else None


def single_of(instruction: Instruction) -> str:
    """The one word of USER and WORKDIR."""
    words = _words(instruction)
    if len(words) != 1:
        raise refused(instruction.line, f"{instruction.word} with {len(words)} words")
    return words[0]


def _instruction(line: int, text: str, packages: tuple[str, ...]) -> Instruction:
    word, _, rest = text.partition(" ") if " " in text else text.partition("\t")
    name = word.upper()
    if name not in WORDS:
        raise refused(line, f"the instruction {name[:40]} (known are {', '.join(WORDS)})")
    if not rest.strip():
        raise refused(line, f"{name} without anything behind it")
    return Instruction(line, name, rest.strip(), packages)


def _check_directive(line: int, text: str) -> None:
    if (found := _DIRECTIVE.fullmatch(text)) and found[1].lower() == "escape" and found[2] != "\\":
        raise refused(line, f"the escape character {found[2]!r}")


def _words(instruction: Instruction) -> list[str]:
    _check_plain(instruction, instruction.text)
    try:
        return shlex.split(instruction.text)
    except ValueError as wrong:
        raise refused(instruction.line, f"{instruction.word}: {wrong}") from None


def _check_plain(instruction: Instruction, text: str) -> None:
    if "$" in text:
        what = f"a variable in {instruction.word}: {instruction.text[:80]!r}"
        raise refused(instruction.line, what)
