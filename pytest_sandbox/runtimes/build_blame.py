"""Whose fault a failed image build is, and the error that says so; the same for every engine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, BuildFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.runtimes.base import BuildRequest

KEPT_LINES: Final = 400
"""So many lines of a step's output are looked at."""
COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")
_LAST_LINES: Final = 20

# What a package manager says when the network, not the recipe, is at fault - and the other way
# round.
_HOST: Final = re.compile(
    r"certificate verif|x509|unable to get local issuer|self.signed certificate|"
    r"no space left on device|SSL certificate problem",
    re.IGNORECASE,
)
_RECIPE: Final = re.compile(
    r"unable to locate package|has no installation candidate|no package .* available|"
    r"no match for argument|target not found|unable to select packages|"
    r"no provider of .* found|unmet dependencies|NO_PUBKEY",
    re.IGNORECASE,
)
_UPSTREAM: Final = re.compile(
    r"404 +not found|error: 404|status code: 404|hash sum mismatch|does not have a release file",
    re.IGNORECASE,
)
_NETWORK: Final = re.compile(
    r"temporary failure resolving|could not resolve|couldn't resolve|name resolution|"
    r"connection refused|connection timed out|connection reset|network is unreachable|"
    r"timed out|timeout|no route to host|failed to connect|cannot initiate the connection|"
    r"temporary error|(?:error|code|status):? *(?:429|5\d\d)\b|too many requests|"
    r"bad gateway|service unavailable|cannot download repomd|failed retrieving file",
    re.IGNORECASE,
)

_NEXT: Final = {
    Blame.RECIPE: "check the package names and repositories of the recipe",
    Blame.NETWORK: "check the network, the proxy and the mirrors, then run it again",
    Blame.UPSTREAM: "look whether the repository still has what the recipe asks for",
    Blame.HOST: "check the host's disk and its extra CA certificates",
    Blame.LIMIT: "raise the memory of builds with --sandbox-build-memory",
}


def blame_of(text: str, code: int | None = None) -> tuple[Blame, str]:
    """Whose fault a failed build is by what it printed, and the line that says so.

    The cause stands before its consequences: a mirror that does not resolve makes packages that
    cannot be located.
    """
    if code == 137:
        return Blame.LIMIT, "a process was killed (status 137): the build ran out of memory"
    for pattern, blame in (
        (_HOST, Blame.HOST),
        (_NETWORK, Blame.NETWORK),
        (_UPSTREAM, Blame.UPSTREAM),
        (_RECIPE, Blame.RECIPE),
    ):
        for line in text.splitlines():
            if pattern.search(line) and not line.lstrip().startswith(("Step ", "The command")):
                return blame, line.strip()
    return Blame.RECIPE, ""


def failed(
    request: BuildRequest,
    *,
    step: str,
    command: str,
    lines: Sequence[str],
    error: str,
    code: int | None = None,
    before: Sequence[str] = (),
    out_of_memory: bool = False,
) -> BuildFailed:
    """The error of a build that failed in `step` (`2/5`) with the instruction `command`.

    `lines` are what it printed, `error` is what the engine says of it, `code` the exit status;
    `before` is shown where it printed nothing. `out_of_memory`: the kernel killed a process of it,
    whatever the status is.
    """
    blame, reason = blame_of("\n".join((*lines, error)), 137 if out_of_memory else code)
    if out_of_memory:
        reason = f"it ran out of memory (the limit is {request.limits.memory >> 20} MiB)"
    what = reason or error
    msg = f"the build of {request.name} failed in {_place(step)}{command[:120]}: {what[:300]}"
    return BuildFailed(
        msg,
        command=command,
        returncode=code,
        blame=blame,
        next_step=_NEXT.get(blame, ""),
        details=_last(lines or before) or error,
    )


def took_too_long(
    request: BuildRequest, *, step: str, command: str, lines: Sequence[str]
) -> BuildFailed:
    """The error of a build that was not done in time."""
    msg = f"the build of {request.name} took longer than {request.timeout:g} s"
    if step:
        msg += f", in {_place(step)}{command[:120]}"
    return BuildFailed(
        msg,
        command=command,
        blame=Blame.TIMEOUT,
        next_step="give it more time with --sandbox-build-timeout",
        details=_last(lines),
    )


def _place(step: str) -> str:
    return f"step {step} " if step else ""


def _last(lines: Sequence[str]) -> str:
    return "\n".join(list(lines)[-_LAST_LINES:])
