"""The first proof: the recipe's own `[verify]` table holds.

The command runs in a shell of its own with stdout and stderr as one stream, so that compound
commands are captured whole. Patterns are literal substrings. Without a check there is no proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_sandbox.errors import CheckFailed, MissingDirectory, Phase, SandboxGone, SandboxTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.recipes.model import Verify
    from pytest_sandbox.runtimes.base import Result, System


@dataclass(frozen=True, slots=True)
class Check:
    """One command with what it must show: an exit status, and literal strings in its output."""

    name: str
    command: str
    patterns: tuple[str, ...]
    exit_code: int = 0


def expand(text: str, *, version: str, install_dir: str) -> str:
    """Put `{version}` and `{install_dir}` in; other braces stay as they are."""
    return text.replace("{version}", version).replace("{install_dir}", install_dir)


def needs_version(verify: Verify) -> bool:
    """Whether a command or pattern of the table holds `{version}`."""
    texts = [verify.command, *verify.literals()]
    texts += [text for extra in verify.additional for text in (extra.command, extra.pattern)]
    return any("{version}" in text for text in texts)


def checks(verify: Verify | None, *, version: str, install_dir: str) -> list[Check]:
    """The checks of a verify table: its own, then each additional one. Empty where there is no
    command.
    """
    if verify is None or not verify.command:
        return []

    def fill(text: str) -> str:
        return expand(text, version=version, install_dir=install_dir)

    found = [
        Check(
            "verify",
            fill(verify.command),
            tuple(fill(pattern) for pattern in verify.literals()),
            verify.expected_exit,
        )
    ]
    for number, extra in enumerate(verify.additional, 1):
        name = f"verify.additional[{number}]"
        found.append(Check(name, fill(extra.command), (fill(extra.pattern),)))
    return found


def shortcoming(check: Check, returncode: int, missing: Sequence[str]) -> str:
    """What is wrong, in words, or empty: the exit status, then the first pattern that did not
    occur.
    """
    if returncode != check.exit_code:
        return f"exit {returncode}, expected {check.exit_code}: `{check.command}`"
    if missing:
        return f"did not print {missing[0]!r}: `{check.command}`"
    return ""


def missing_patterns(check: Check, result: Result) -> list[str]:
    """The patterns that occur neither in what was kept of the output nor in its full log."""
    wanted = [pattern for pattern in check.patterns if pattern.encode() not in result.stdout_bytes]
    if not wanted or not result.truncated or result.log is None:
        return wanted
    return _absent(result.log, wanted)


def _absent(log: Path, wanted: list[str]) -> list[str]:
    # The log may be 64 MiB: read it in blocks that overlap by the longest pattern.
    left = {pattern: pattern.encode() for pattern in wanted}
    overlap = max(map(len, left.values()))
    tail = b""
    with log.open("rb") as source:
        while left and (block := source.read(1 << 20)):
            window = tail + block
            left = {text: raw for text, raw in left.items() if raw not in window}
            tail = window[-overlap:]
    return [pattern for pattern in wanted if pattern in left]


def run_checks(
    system: System,
    todo: Sequence[Check],
    *,
    env: Mapping[str, str],
    cwd: str,
    log: Path | None = None,
    timeout: float | None = None,
) -> list[tuple[Check, Result]]:
    """Run the checks in order until one fails, in `cwd`, or in `/` where that is no folder.

    Raises CheckFailed, SandboxTimeout, SandboxGone.
    """
    done: list[tuple[Check, Result]] = []
    for number, check in enumerate(todo):
        file = log / f"verify-{number:02d}.log" if log else None
        run = partial(
            system.run,
            ["/bin/sh", "-c", check.command],
            env=env,
            log=file,
            merge=True,
            timeout=timeout,
        )
        try:
            try:
                result = run(cwd=cwd)
            except MissingDirectory:  # to ask before would cost more than the command
                cwd = "/"
                result = run(cwd=cwd)
        except SandboxTimeout as late:
            what = f"ran out of time: `{check.command}` ({check.name})"
            raise SandboxTimeout(
                what, late.result, phase=Phase.VERIFY, next_step=late.next_step
            ) from late
        except SandboxGone as gone:
            gone.phase = Phase.VERIFY
            raise
        done.append((check, result))
        wrong = shortcoming(check, result.returncode, missing_patterns(check, result))
        if wrong or result.limit is not None:
            raise _failure(check, result, wrong)
    return done


def _failure(check: Check, result: Result, wrong: str) -> CheckFailed:
    from pytest_sandbox.errors import Blame

    if result.limit is not None:
        msg = f"hit the {result.limit} limit: `{check.command}` ({check.name})"
        return CheckFailed(msg, result=result, blame=Blame.LIMIT, next_step="see its last lines")
    where = "" if check.name == "verify" else f" ({check.name})"
    return CheckFailed(wrong + where, result=result, next_step="see its last lines")
