"""The require_system step: a command that the system must have, and how the system gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_sandbox.errors import RecipeError
from pytest_sandbox.recipes.findings import key_text, nearest
from pytest_sandbox.recipes.grammar import GrammarError, check_packages, check_params
from pytest_sandbox.recipes.params import strings_of, text_of
from pytest_sandbox.recipes.vocabulary import ACTIONS, INSTALL_ACTIONS, PRIMITIVES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.recipes.model import Step
    from pytest_sandbox.targets import Target

MIGRATE: Final = "run: pytest-sandbox migrate {path}"


class Primitive(msgspec.Struct, frozen=True, kw_only=True):
    """One system action: `action` by its full name (`apt_install`), with its parameters."""

    action: str
    params: dict[str, Any] = {}


class RequireSystem(msgspec.Struct, frozen=True, kw_only=True):
    """A require_system step as written. Without packages and primitives it is a check only."""

    command: str
    version_flag: str = ""
    version_regex: str = ""
    min_version: str = ""
    packages: dict[str, tuple[str, ...]] = {}
    primitives: tuple[Primitive, ...] = ()

    @property
    def check_only(self) -> bool:
        """Whether nothing says how the system gets the command."""
        return not self.packages and not self.primitives

    def actions_for(self, target: Target) -> tuple[Primitive, ...]:
        """The system actions that provide the command on `target`, in order."""
        wanted = self.primitives or tuple(
            Primitive(action=INSTALL_ACTIONS[manager], params={"packages": list(names)})
            for manager, names in self.packages.items()
            if manager in INSTALL_ACTIONS and names
        )
        return tuple(one for one in wanted if ACTIONS[one.action].runs_on(target))

    @property
    def guidance(self) -> str:
        """The text of the `manual` primitives: what a person does where no package helps."""
        texts = (text_of(one.params, "text") for one in self.primitives if one.action == "manual")
        return "\n".join(text for text in texts if text)


class RequireSystemError(ValueError):
    """A require_system step that cannot be read; `where` is the key path below the step."""

    def __init__(self, message: str, where: tuple[str | int, ...], next_step: str = "") -> None:
        super().__init__(message)
        self.where = where
        self.next_step = next_step


def read_require_system(step: Step, path: str = "") -> RequireSystem:
    """The typed form of a require_system step. Raises RecipeError."""
    try:
        return read_params(step.params)
    except RequireSystemError as wrong:
        key = key_text(("steps", step.index - 1, *wrong.where))
        msg = f"{key}: {wrong}"
        raise RecipeError(
            msg, path=path, key=key, next_step=wrong.next_step.format(path=path or "RECIPE")
        ) from None


def read_params(params: Mapping[str, Any]) -> RequireSystem:
    """The typed form of the step's parameters. Raises RequireSystemError."""
    if "install_guide" in params:
        msg = "install_guide is no longer understood; use packages or primitives"
        raise RequireSystemError(msg, ("install_guide",), MIGRATE)
    if "packages" in params and "primitives" in params:
        msg = "packages and primitives exclude each other"
        raise RequireSystemError(msg, ("primitives",), "keep one of the two")
    try:
        check_params("require_system", params)
        return RequireSystem(
            command=text_of(params, "command"),
            version_flag=text_of(params, "version_flag"),
            version_regex=text_of(params, "version_regex"),
            min_version=text_of(params, "min_version"),
            packages=_packages(params.get("packages", {})),
            primitives=_primitives(params.get("primitives", [])),
        )
    except GrammarError as wrong:
        raise RequireSystemError(str(wrong), wrong.where) from None


def _packages(written: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(written, dict):
        msg = 'expected a table of lists by package manager, like { apt = ["jq"] }'
        raise RequireSystemError(msg, ("packages",))
    for manager, names in written.items():
        if manager in INSTALL_ACTIONS:
            check_packages(manager, names, ("packages", manager))
    return {
        manager: strings_of(written, manager) for manager in written if manager in INSTALL_ACTIONS
    }


def _primitives(written: object) -> tuple[Primitive, ...]:
    if not isinstance(written, list):
        msg = 'expected a list of tables, like [{ action = "apt", packages = ["jq"] }]'
        raise RequireSystemError(msg, ("primitives",))
    return tuple(_primitive(entry, index) for index, entry in enumerate(written))


def _primitive(entry: object, index: int) -> Primitive:
    where = ("primitives", index)
    if not isinstance(entry, dict):
        msg = 'expected a table, like { action = "apt", packages = ["jq"] }'
        raise RequireSystemError(msg, where)
    name = entry.get("action")
    if not isinstance(name, str) or not name:
        msg = "action is required"
        raise RequireSystemError(msg, where)
    action = PRIMITIVES.get(name, name)
    if action not in PRIMITIVES.values():
        known = ", ".join(PRIMITIVES)
        meant = nearest(name, PRIMITIVES)
        msg = f"unknown primitive {name!r}; expected one of {known}"
        raise RequireSystemError(
            msg, (*where, "action"), f"write {meant!r}" if meant else "correct its name"
        )
    params = {key: value for key, value in entry.items() if key != "action"}
    try:
        check_params(action, params)
    except GrammarError as wrong:
        raise RequireSystemError(str(wrong), (*where, *wrong.where)) from None
    return Primitive(action=action, params=params)
