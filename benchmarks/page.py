"""docs/benchmarks.md: the figures of a run, between markers; the prose around them is people's.

    <!-- figures: NAME -->
    ...
    <!-- end: NAME -->

Each benchmark has a section of its own, so a run of one of them leaves the others as they are.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.contest import Contest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
MACHINE = "machine"
_PRIVATE = re.compile(r"(?<![\w.])/(?:tmp|work|root|home|var/tmp|opt)/[^\s,;:)'\"]*|https?://\S+")


def write(results: Mapping[str, Sequence[Contest]], page: Path = PAGE) -> None:
    """Put the figures of each benchmark, and the machine's description, into the page."""
    text = page.read_text(encoding="utf-8")
    text = replace(text, MACHINE, describe())
    for name, contests in results.items():
        told = [f"{today()}; {short()}.", *(section(contest, name) for contest in contests)]
        text = replace(text, name, "\n\n".join(told))
    page.write_text(text, encoding="utf-8")


def today() -> str:
    """The date as the page writes it."""
    now = datetime.now(UTC)
    return f"{now.day} {now:%B %Y}"


def replace(text: str, name: str, figures: str) -> str:
    """The page with other figures in that section; one without it gets it at its end."""
    first, last = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
    inside = f"{first}\n\n{public(figures)}\n\n{last}"
    before, found, rest = text.partition(first)
    if not found:
        return f"{text.rstrip()}\n\n## {name}\n\n{inside}\n"
    _, found, after = rest.partition(last)
    if not found:
        msg = f"{PAGE.name} has {first} without {last}"
        raise ValueError(msg)
    return f"{before}{inside}{after}"


def public(text: str) -> str:
    """Without this machine's paths and addresses."""
    return _PRIVATE.sub("...", text)


def section(contest: Contest, name: str) -> str:
    """One contest as a heading, a table, its notes and its bars."""
    title = contest.title.removeprefix(f"{name}: ")
    first = title.split(maxsplit=1)[0]
    heading = f"{title[:1].upper()}{title[1:]}" if first.isalpha() else title
    lines = [f"### {heading}", ""]
    if contest.samples:
        lines += ["| | median | p95 | against ours | turns |", "|---|---:|---:|---:|---:|"]
    for candidate, found in contest.samples.items():
        cells = [
            candidate,
            contest.text(contest.median(candidate)),
            contest.text(contest.p95(candidate)),
            "" if candidate == contest.ours else f"{contest.ratio(candidate, contest.ours):.2f}x",
            str(len(found)),
        ]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    listed = [_line(str(bar)) for bar in contest.bars]
    listed += [f"{who}: did not take part: {why}" for who, why in contest.skipped.items()]
    listed += [note.strip() for note in contest.notes]
    if listed:
        lines += ["", *(f"- {line}" for line in listed)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _line(text: str) -> str:
    verdict, _, rest = text.partition(": ")
    return f"**{verdict}**: {rest}"
