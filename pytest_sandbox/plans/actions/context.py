"""What a step knows when it becomes operations, and how it reads its parameters."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import PlanError
from pytest_sandbox.plans.model import TOOLS_HOME
from pytest_sandbox.plans.templates import expand
from pytest_sandbox.recipes.grammar import GrammarError, check_url
from pytest_sandbox.recipes.params import strings_of, text_of

if TYPE_CHECKING:
    from pytest_sandbox.plans.layout import Layout
    from pytest_sandbox.plans.model import PlanStep
    from pytest_sandbox.targets import Target


@dataclass(slots=True)
class Context:
    """One tool's compilation: its folders, its target, and what its steps have said so far."""

    layout: Layout
    target: Target
    guidance: str = ""
    """The texts of its `manual` steps: what a person does where something is missing."""
    commands: list[str] = field(default_factory=list)
    """Paths below the install folder that become commands."""

    def variables(self, *, final: bool = False) -> dict[str, str]:
        """The placeholders of run time; `final`: of steps that run after the installation."""
        known = {
            "install_dir": self.layout.install_dir if final else self.layout.staging,
            "work_dir": self.layout.work,
            "libs_dir": f"{TOOLS_HOME}/libs",
            "os": self.target.os,
            "arch": self.target.arch,
        }
        if self.layout.version:
            known["version"] = self.layout.version
        return known


class Reader:
    """One step's parameters with run-time placeholders filled in; errors name step and key."""

    def __init__(self, step: PlanStep, context: Context, label: str) -> None:
        self.step = step
        self.context = context
        self.label = label
        self.params: dict[str, Any] = expand(
            step.params, context.variables(final=step.action == "set_env")
        )

    def fault(self, key: str, what: str, next_step: str = "correct the recipe") -> PlanError:
        """A PlanError that places itself."""
        return PlanError(f"{self.label}: {key}: {what}", next_step=next_step)

    def text(self, key: str) -> str:
        """A string, or empty."""
        return text_of(self.params, key)

    def required(self, key: str) -> str:
        """A string that must be there."""
        found = self.text(key)
        if not found:
            raise self.fault(key, "a string is required")
        return found

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent. Anything else in it is an error."""
        if self.params.get(key) is None:
            return ()
        found = strings_of(self.params, key)
        if not found and self.params[key] != []:
            raise self.fault(key, f"expected a list of strings, got {self.params[key]!r}")
        return found

    def number(self, key: str, default: int = 0) -> int:
        """A whole number from 0."""
        found = self.params.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise self.fault(key, f"expected a number from 0, got {found!r}")
        return found

    def url(self, value: str, key: str) -> str:
        """An https URL (plain http for loopback only)."""
        try:
            return check_url(value)
        except GrammarError as wrong:
            raise self.fault(key, str(wrong)) from None

    def relative(self, value: Any, key: str) -> str:
        """A path below the work folder, normalised; `.` is the folder itself."""
        return inside(value, key, self)

    def work(self, value: Any, key: str) -> str:
        """The absolute path in the sandbox of what lies below the work folder."""
        path = self.relative(value, key)
        return self.context.layout.work if path == "." else f"{self.context.layout.work}/{path}"


def inside(value: Any, key: str, reader: Reader) -> str:
    """Hold a path to the work folder. Raises PlanError for `..`, absolute paths, control signs."""
    if not isinstance(value, str) or not value:
        raise reader.fault(key, f"expected a path, got {value!r}")
    root = reader.context.layout.work
    path = value
    if path == root or path.startswith(f"{root}/"):  # {work_dir} and {install_dir} were written
        path = path[len(root) :].lstrip("/") or "."
    if path.startswith("/") or "\\" in path or not path.isprintable():
        raise reader.fault(key, f"{value!r} is no path below the work folder")
    if ".." in path.split("/"):
        raise reader.fault(key, f"{value!r} leaves the work folder")
    return posixpath.normpath(path)
