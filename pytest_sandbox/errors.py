"""The one exception tree, and the one table of blame.

SandboxError
├── UsageError                 a wrong option, mark, target or file name (the user's to mend)
├── RecipeError                a recipe that cannot be read (file, line, key)
├── PlanError                  a recipe that cannot become a plan for a target
├── SpecError                  needs that fit no single Linux family, or an unknown one
├── DownloadError              an artefact that could not be had
├── RuntimeUnavailable         no engine, or an engine that does not answer
├── ImageUnavailable           a base image that is neither at hand nor to be had
│   ├── RegistryError          a registry that cannot be reached, refuses, or answers nonsense
│   └── InvalidImage           an image whose content breaks the rules (digest, size, form, bounds)
├── BuildFailed                an image build that ended badly
├── SandboxGone                the sandbox ended while it was in use
├── UnknownUser                `user=` names nobody in the sandbox
├── MissingDirectory           `cwd=` is no directory in the sandbox (also a FileNotFoundError)
├── CommandFailed              `run(check=True)` and a non-zero exit status
├── StepFailed                 a step of a plan did not do what it says
├── CheckFailed                a verify check, or a plugin's proof, did not hold
└── SandboxTimeout             a command or a sandbox ran out of time (also a TimeoutError)
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.base import Result


class Phase(StrEnum):
    """Where in the pipeline an outcome happened."""

    RESOLVE = "resolve"
    IMAGE = "image"
    INSTALL = "install"
    VERIFY = "verify"
    PROVE = "prove"


class Blame(StrEnum):
    """Whose fault an outcome is.

    A non-zero step, a failed check or a prompt on stdin is the recipe's. The wall clock is
    `timeout`; memory, pids, disk and output are `limit`. An engine that is gone and an untrusted
    certificate are the host's. 404 and a wrong hash are upstream's. DNS, refused or cut
    connections, 429 and 5xx are the network's.
    """

    RECIPE = "recipe"
    UPSTREAM = "upstream"
    NETWORK = "network"
    LIMIT = "limit"
    HOST = "host"
    UNSUPPORTED = "unsupported"
    TIMEOUT = "timeout"


def printable(text: str) -> str:
    """Escape control characters (but not tab and newline), so that output cannot drive a terminal
    or a CI log.
    """
    return "".join(
        ch
        if ch in "\t\n" or (ch.isprintable() or ch == " ")
        else ch.encode("unicode_escape").decode()
        for ch in text
    )


class SandboxError(Exception):
    """The root of every error that this package raises.

    `what` says what happened, `next_step` what to do about it; `phase` and `blame` place it.
    `str()` is the one line `PHASE[/PROOF]: BLAME: what; next: step` that reports begin with.
    `details` may hold more lines (a log's tail).
    """

    phase: Phase = Phase.RESOLVE
    blame: Blame = Blame.HOST

    def __init__(
        self,
        what: str,
        *,
        next_step: str = "",
        phase: Phase | None = None,
        blame: Blame | None = None,
        proof: str = "",
        details: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step
        if phase is not None:
            self.phase = phase
        if blame is not None:
            self.blame = blame
        self.proof = proof
        self.details = details

    def headline(self) -> str:
        """The first line of every report of this error, with control characters escaped."""
        where = f"{self.phase}/{self.proof}" if self.proof else str(self.phase)
        line = f"{where}: {self.blame}: {self.what}"
        if self.next_step:
            line += f"; next: {self.next_step}"
        return printable(" ".join(line.split()))

    def __str__(self) -> str:
        return self.headline()


class UsageError(SandboxError):
    """A wrong option, mark, target or file name."""


class RecipeError(SandboxError):
    """A recipe that cannot be read. `path`, `line` (from 1) and `key` say where."""

    blame = Blame.RECIPE

    def __init__(
        self,
        what: str,
        *,
        path: str = "",
        line: int | None = None,
        key: str = "",
        next_step: str = "",
    ) -> None:
        super().__init__(what, next_step=next_step)
        self.path = path
        self.line = line
        self.key = key

    def location(self) -> str:
        """`path:line`, as far as it is known."""
        if self.path and self.line:
            return f"{self.path}:{self.line}"
        return self.path or (f"line {self.line}" if self.line else "")

    def headline(self) -> str:
        where = self.location()
        line = f"{self.phase}: {self.blame}: {where + ': ' if where else ''}{self.what}"
        if self.next_step:
            line += f"; next: {self.next_step}"
        return printable(" ".join(line.split()))


class PlanError(SandboxError):
    """A recipe that cannot become a plan for a target."""

    blame = Blame.RECIPE


class SpecError(SandboxError):
    """Needs that fit no single Linux family, or an unknown one."""

    phase = Phase.IMAGE
    blame = Blame.RECIPE


class DownloadError(SandboxError):
    """An artefact that could not be had: `blame` is upstream (404, wrong hash), network or host."""

    phase = Phase.INSTALL
    blame = Blame.NETWORK


class RuntimeUnavailable(SandboxError):
    """No engine, or an engine that does not answer."""

    phase = Phase.IMAGE


class ImageUnavailable(SandboxError):
    """A base image that is neither at hand nor to be had."""

    phase = Phase.IMAGE


class RegistryError(ImageUnavailable):
    """A registry that cannot be reached, refuses, or answers nonsense. `status` is its HTTP status,
    0 where there was none.
    """

    blame = Blame.NETWORK

    def __init__(
        self,
        what: str,
        *,
        next_step: str = "",
        blame: Blame | None = None,
        status: int = 0,
        details: str = "",
    ) -> None:
        super().__init__(what, next_step=next_step, blame=blame, details=details)
        self.status = status


class InvalidImage(ImageUnavailable):
    """An image whose content breaks the rules: digest, size, form, bounds, unsafe entries."""

    blame = Blame.UPSTREAM


class BuildFailed(SandboxError):
    """An image build that ended badly. `command` is the failing instruction, `details` its last
    lines.
    """

    phase = Phase.IMAGE
    blame = Blame.RECIPE

    def __init__(
        self,
        what: str,
        *,
        command: str = "",
        returncode: int | None = None,
        blame: Blame | None = None,
        next_step: str = "",
        details: str = "",
    ) -> None:
        super().__init__(what, blame=blame, next_step=next_step, details=details)
        self.command = command
        self.returncode = returncode


class SandboxGone(SandboxError):
    """The sandbox ended while it was in use. `limit` names the limit that ended it, if one did."""

    phase = Phase.INSTALL
    blame = Blame.RECIPE

    def __init__(
        self,
        what: str,
        *,
        limit: str | None = None,
        phase: Phase | None = None,
        blame: Blame | None = None,
        next_step: str = "",
        details: str = "",
    ) -> None:
        super().__init__(what, phase=phase, blame=blame, next_step=next_step, details=details)
        self.limit = limit


class UnknownUser(SandboxError):
    """`user=` names nobody in the sandbox."""

    phase = Phase.INSTALL
    blame = Blame.RECIPE


class MissingDirectory(SandboxError, FileNotFoundError):
    """`cwd=` is no directory in the sandbox."""

    phase = Phase.INSTALL
    blame = Blame.RECIPE

    def __str__(self) -> str:
        return self.headline()


class CommandFailed(SandboxError):
    """`run(check=True)` and a non-zero exit status; `result` holds the whole outcome."""

    phase = Phase.INSTALL
    blame = Blame.RECIPE

    def __init__(
        self, what: str, result: Result, *, next_step: str = "", details: str = ""
    ) -> None:
        super().__init__(what, next_step=next_step, details=details)
        self.result = result


class StepFailed(SandboxError):
    """A step of a plan did not do what it says; `result` is the failing command's, if one ran."""

    phase = Phase.INSTALL
    blame = Blame.RECIPE

    def __init__(
        self,
        what: str,
        *,
        step: str = "",
        result: Result | None = None,
        blame: Blame | None = None,
        next_step: str = "",
        details: str = "",
    ) -> None:
        super().__init__(what, blame=blame, next_step=next_step, details=details)
        self.step = step
        self.result = result


class CheckFailed(SandboxError):
    """A verify check, or a proof that a plugin adds, did not hold; `result` is its command's.

    With `proof`, the proof's name, the phase is `prove` unless another one is given.
    """

    phase = Phase.VERIFY
    blame = Blame.RECIPE

    def __init__(
        self,
        what: str,
        *,
        result: Result | None = None,
        blame: Blame | None = None,
        phase: Phase | None = None,
        proof: str = "",
        next_step: str = "",
        details: str = "",
    ) -> None:
        if proof and phase is None:
            phase = Phase.PROVE
        super().__init__(
            what, phase=phase, blame=blame, proof=proof, next_step=next_step, details=details
        )
        self.result = result


class SandboxTimeout(SandboxError, TimeoutError):
    """A command or a sandbox ran out of time; `result` holds what there was until then."""

    phase = Phase.INSTALL
    blame = Blame.TIMEOUT

    def __init__(
        self, what: str, result: Result, *, next_step: str = "", phase: Phase | None = None
    ) -> None:
        super().__init__(what, next_step=next_step, phase=phase)
        self.result = result

    def __str__(self) -> str:
        return self.headline()
