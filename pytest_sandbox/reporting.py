"""What a person sees at the end: sections of sandboxes, failures in one line each, recipes x
families as a table.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError, printable
from pytest_sandbox.session import weaker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession

HEADLINE: Final = "sandbox.headline"
"""The user property that carries a failure's headline to the summary, also from a worker."""

ABSENT: Final = "sandbox: "
"""Begins the reason of a skip for want of an engine or a base."""

_ITEM: Final = re.compile(r"::install\[(?P<target>[^\]]+)\]$")
_WORDS: Final = {"passed": "ok", "failed": "FAILED", "skipped": "-", "error": "ERROR"}
_RANK: Final = {"": 0, "passed": 1, "skipped": 2, "failed": 3, "error": 4}
_TAIL: Final = 20


def describe_sandbox(sandbox: Sandbox) -> str:
    """A section for the report of a failing test: what the sandbox was and what ran in it."""
    lines = [f"{sandbox.target} from {sandbox.image}"]
    for result in sandbox.journal[-_TAIL:]:
        limit = f" ({result.limit} limit)" if result.limit else ""
        lines.append(f"$ {shlex.join(result.argv)}  -> {result.returncode}{limit}")
    if sandbox.journal and not sandbox.journal[-1].ok:
        last = sandbox.journal[-1]
        lines += [f"  | {text}" for text in last.tail.splitlines()[-_TAIL:]]
    lines += [f"note: {notice}" for notice in sandbox.notices]
    return printable("\n".join(lines))


def describe_engine(session: RunSession, *, workers: bool) -> list[str]:
    """For the header: which engine the run has and why, and which limits are weaker there.

    With `workers` the engine is theirs: this process looks at it, and lets go of it.
    """
    name = session.settings.runtime
    try:
        if workers:
            from pytest_sandbox.runtimes.detect import choose_runtime

            given = session.find(name)
            if given is not None:
                return [f"runtime {name}"]
            choice = choose_runtime(name, session.environ, session.settings)
            info, why = choice.runtime.info(), choice.why
            choice.runtime.close()
        else:
            info, why = session.info, session.why
    except SandboxError as missing:
        step = f"; next: {missing.next_step}" if missing.next_step else ""
        return [printable(session.mask(f"runtime {name}: none here: {missing.what}{step}"))]
    shown = f"{info.name} with {info.engine}" if info.engine else f"{info.name} {info.version}"
    lines = [f"runtime {shown}" + (f" (auto: {why})" if why else "")]
    if info.weak_limits:
        lines.append(weaker(info))
    return [printable(session.mask(line)) for line in lines]


class Board:
    """Collects the outcomes of recipe items from reports, on the controller or without xdist."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, str]] = {}
        self._headlines: list[tuple[str, str]] = []
        self._absent: dict[str, int] = {}
        self.unsupported: list[tuple[str, str]] = []

    def absent(self, report: pytest.TestReport) -> None:
        """Count a test that was skipped for want of an engine or a base."""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason.startswith(ABSENT):
                text = reason.removeprefix(ABSENT)
                self._absent[text] = self._absent.get(text, 0) + 1

    def absences(self) -> list[str]:
        """One line for each reason why tests were skipped for want of an engine or a base."""
        return [f"{count} skipped: {text}" for text, count in sorted(self._absent.items())]

    def add(self, report: pytest.TestReport) -> None:
        """Take one report in; reports of other tests are passed over."""
        if report.failed:
            properties: list[tuple[str, Any]] = report.user_properties
            for key, value in properties:
                if key == HEADLINE:
                    self._headlines.append((report.nodeid, str(value)))
        match = _ITEM.search(report.nodeid)
        if match is None or (report.when != "call" and report.passed):
            return
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        row = self._cells.setdefault(report.nodeid[: match.start()], {})
        if _RANK[outcome] > _RANK[row.get(match["target"], "")]:
            row[match["target"]] = outcome

    def table(self) -> list[str]:
        """Recipes x targets as text, or nothing where only one target ran."""
        targets = sorted({target for row in self._cells.values() for target in row})
        if len(targets) < 2:
            return []
        names = {path: path.rsplit("/", 1)[-1].removesuffix(".toml") for path in self._cells}
        first = max(map(len, names.values()))
        widths = [max(len(target), 6) for target in targets]
        lines = [" " * first + _row(targets, widths)]
        for path in sorted(self._cells):
            row = self._cells[path]
            if set(row.values()) == {"skipped"} and len(self._cells) > _TAIL:
                continue
            words = [_WORDS.get(row.get(target, ""), "") for target in targets]
            lines.append(f"{names[path]:<{first}}" + _row(words, widths))
        counts = [
            f"{sum(row.get(target) == 'passed' for row in self._cells.values())} ok"
            for target in targets
        ]
        lines.append(" " * first + _row(counts, widths))
        return lines

    def failures(self, width: int) -> list[str]:
        """One entry a failed item: its node id, then the whole headline, wrapped."""
        lines = []
        for nodeid, headline in self._headlines:
            lines.append(nodeid)
            lines += textwrap.wrap(
                headline, max(40, width - 2), initial_indent="  ", subsequent_indent="    "
            )
        return lines


def _row(words: Iterable[str], widths: Sequence[int]) -> str:
    return "".join(f"  {word:<{width}}" for word, width in zip(words, widths, strict=True)).rstrip()
