"""Words that are no UTF-8: a runtime spec is JSON and cannot hold them, but the sandbox's own shell
can make them, byte by byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def is_odd(words: Iterable[str]) -> bool:
    """Whether one of them holds bytes that are no UTF-8 (surrogates, by PEP 383)."""
    return any(not word.isascii() and _has_surrogates(word) for word in words)


def _has_surrogates(word: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in word)


def spelled(argv: Sequence[str]) -> tuple[str, ...]:
    """The same command, for a sandbox with a shell; as it is where that is not needed."""
    if not is_odd(argv):
        return tuple(argv)
    from pytest_sandbox.runtimes import shell

    return tuple(shell.spelled(argv))


def no_shell(argv: Sequence[str]) -> SandboxError:
    """The error for a sandbox that has no shell to spell them."""
    odd = next(word for word in argv if is_odd([word]))
    msg = f"{odd!r} is not UTF-8, and the image has no shell (/bin/sh) that could spell it"
    return SandboxError(msg, next_step="leave it out, or pass it in a file")


def refuse_odd(what: str, words: Iterable[str]) -> None:
    """For what no shell can spell. Raises SandboxError."""
    for word in words:
        if is_odd([word]):
            msg = f"{what} {word!r} is not UTF-8, which a sandbox cannot be given"
            raise SandboxError(msg, next_step="leave it out, or pass it in a file")
