"""System actions: what they mean is in the image already; at run time they are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.plans.model import Command, Notice, Operation, RequireCommand, RequirePackages
from pytest_sandbox.recipes.grammar import (
    GrammarError,
    bare_package,
    check_params,
)
from pytest_sandbox.recipes.require_system import RequireSystemError, read_params
from pytest_sandbox.recipes.vocabulary import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pytest_sandbox.plans.actions.context import Reader

_HAS_GROUP = """while IFS=: read -r name rest; do
  if [ "$name" = "$1" ]; then exit 0; fi
done </etc/group
exit 1
"""


def system_action(reader: Reader) -> tuple[Operation, ...]:
    """Any action of the vocabulary's system actions."""
    return _operations(reader.step.action, reader.params, reader)


def require_system(reader: Reader) -> tuple[Operation, ...]:
    """The command must be there and new enough, groups of its primitives too."""
    try:
        wanted = read_params(reader.params)
    except RequireSystemError as wrong:
        raise reader.fault(".".join(map(str, wrong.where)), str(wrong)) from None
    if not wanted.command:
        raise reader.fault(key="command", what="a string is required")
    found: list[Operation] = []
    for one in wanted.actions_for(reader.context.target):
        if one.action not in {"require_command", "manual"} and not ACTIONS[one.action].manager:
            found += _operations(one.action, one.params, reader)
    texts = [text for text in (wanted.guidance, reader.context.guidance) if text]
    found.append(
        RequireCommand(
            command=wanted.command,
            version_flag=wanted.version_flag,
            version_regex=wanted.version_regex,
            min_version=wanted.min_version,
            guidance="\n".join(dict.fromkeys(texts)),
        )
    )
    for one in wanted.primitives:
        if one.action == "require_command":
            found += _operations(one.action, one.params, reader)
    return tuple(found)


def _operations(action: str, params: Mapping[str, Any], reader: Reader) -> tuple[Operation, ...]:
    try:
        check_params(action, params)
    except GrammarError as wrong:
        raise reader.fault(".".join(map(str, wrong.where)), str(wrong)) from None
    if action.endswith(("_repo", "_ppa")):
        what = params.get("url") or params.get("ppa")
        return (Notice(text=f"repository {what} is set up in the image"),)
    if action == "group_add":
        group = _text(params, "group", reader)
        return (
            Command(
                argv=("/bin/sh", "-c", _HAS_GROUP, "group_add", group),
                cwd="/",
                failure=f"the group {group} is not there",
                looks_only=True,
            ),
        )
    if action in {"service_enable", "service_start"}:
        service = _text(params, "service", reader)
        return (
            Notice(text=f"{action} {service}: a sandbox has no init system, nothing is started"),
        )
    if action == "manual":
        return (Notice(text=_text(params, "text", reader), manual=True),)
    if action == "require_command":
        return (_require_command(params, reader),)
    return _require_packages(action, params, reader)


def _require_packages(
    action: str, params: Mapping[str, Any], reader: Reader
) -> tuple[Operation, ...]:
    manager = ACTIONS[action].manager
    packages = params.get("packages")
    names = packages if isinstance(packages, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise reader.fault(
            key="packages", what=f"expected a list of package names, got {packages!r}"
        )
    found = tuple(sorted({bare_package(manager, name) for name in names}))
    return (RequirePackages(manager=manager, packages=found),)


def _require_command(params: Mapping[str, Any], reader: Reader) -> RequireCommand:
    values = {
        key: value
        for key in ("version_flag", "version_regex", "min_version")
        if isinstance(value := params.get(key), str)
    }
    if values.get("min_version") and not (
        values.get("version_flag") and values.get("version_regex")
    ):
        raise reader.fault(key="min_version", what="needs version_flag and version_regex beside it")
    return RequireCommand(
        command=_text(params, "command", reader), guidance=reader.context.guidance, **values
    )


def _text(params: Mapping[str, Any], key: str, reader: Reader) -> str:
    value = params.get(key)
    if not isinstance(value, str) or not value:
        raise reader.fault(key, "a string is required")
    return value
