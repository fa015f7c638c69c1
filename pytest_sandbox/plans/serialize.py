"""Plans as JSON, format_version 5: what the registry's own tool writes and reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_sandbox.errors import PlanError
from pytest_sandbox.plans.model import (
    FORMAT_VERSION,
    OLDEST_FORMAT,
    DependencyPlan,
    Plan,
    PlanStep,
)

if TYPE_CHECKING:
    from pytest_sandbox.recipes.model import Verify

_NEXT: Final = "write it again with pytest-sandbox plan"


def plan_to_json(plan: Plan) -> str:
    """The plan as indented JSON with the format's own order of keys and a final newline."""
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tool": plan.tool,
        "version": plan.version,
        "platform": msgspec.to_builtins(plan.platform),
    }
    if plan.generated_at:
        document["generated_at"] = plan.generated_at
    if plan.recipe_source:
        document["recipe_source"] = plan.recipe_source
    document["deterministic"] = plan.deterministic
    if plan.dependencies:
        document["dependencies"] = [_dependency(part) for part in plan.dependencies]
    document["steps"] = [_step(step) for step in plan.steps]
    _add_tail(document, plan.verify, plan.recipe_type)
    if plan.binaries:
        document["binaries"] = plan.binaries
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _add_tail(document: dict[str, Any], verify: Verify | None, recipe_type: str) -> None:
    if verify is not None and (checked := _verify(verify)):
        document["verify"] = checked
    if recipe_type:
        document["recipe_type"] = recipe_type


def _dependency(part: DependencyPlan) -> dict[str, Any]:
    document: dict[str, Any] = {"tool": part.tool, "version": part.version}
    if part.dependencies:
        document["dependencies"] = [_dependency(child) for child in part.dependencies]
    document["steps"] = [_step(step) for step in part.steps]
    _add_tail(document, part.verify, part.recipe_type)
    return document


def _step(step: PlanStep) -> dict[str, Any]:
    document: dict[str, Any] = {"action": step.action}
    if step.phase:
        document["phase"] = step.phase
    document |= {
        "params": step.params,
        "evaluable": step.evaluable,
        "deterministic": step.deterministic,
    }
    for key in ("url", "checksum", "size"):
        if value := getattr(step, key):
            document[key] = value
    return document


def _verify(verify: Verify) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if verify.command:
        document["command"] = verify.command
    if verify.pattern:
        document["pattern"] = verify.pattern
    if verify.patterns:
        document["patterns"] = verify.patterns
    if verify.exit_code is not None:
        document["exit_code"] = verify.exit_code
    if verify.additional:
        document["additional"] = msgspec.to_builtins(verify.additional)
    return document


def plan_from_json(text: str, path: str = "") -> Plan:
    """Read a plan, also one that another tool wrote. Raises PlanError that names file and key.

    Keys that are not known are ignored, and null stands for absent. Whether the plan can be carried
    out here is for plans/script.py to say.
    """
    where = path or "the plan"
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as wrong:
        msg = f"{where} is no JSON: {wrong}"
        raise PlanError(msg, next_step=_NEXT) from wrong
    if not isinstance(document, dict):
        msg = f"{where}: expected an object, found {type(document).__name__}"
        raise PlanError(msg, next_step=_NEXT)
    version = document.get("format_version")
    if not isinstance(version, int) or version < OLDEST_FORMAT or version > FORMAT_VERSION:
        msg = (
            f"{where}: format_version {version!r} cannot be read; "
            f"{OLDEST_FORMAT} to {FORMAT_VERSION} can"
        )
        raise PlanError(msg, next_step=_NEXT)
    try:
        plan = msgspec.convert(_without_nulls(document), Plan)
    except msgspec.ValidationError as wrong:
        msg = f"{where}: {wrong}"
        raise PlanError(msg, next_step=_NEXT) from wrong
    return msgspec.structs.replace(plan, format_version=FORMAT_VERSION, obstacles=[])


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
