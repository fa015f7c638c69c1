"""Placeholders: single braces, plain substitution, unknown ones stay as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_sandbox.recipes.model import Recipe
    from pytest_sandbox.targets import Target

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.@+-]*)\}")
_VERSION = re.compile(r"\{version(?:_tag|\.url|\.checksum)?\}")

MAPPINGS: Final = (("os_mapping", "os"), ("arch_mapping", "arch"))
"""Step parameter -> the placeholder whose value it replaces, for that step only."""


def plan_variables(recipe: Recipe, target: Target, version: str) -> dict[str, str]:
    """What is known when a plan is made. Without a version its placeholders stay."""
    known = {"os": target.os, "arch": target.arch}
    if version:
        known["version"] = version
        known["version_tag"] = recipe.version.tag_prefix + version
    return known


def mapped(params: Mapping[str, Any], variables: Mapping[str, str]) -> Mapping[str, str]:
    """The variables as one step sees them; values that its mappings do not name pass through."""
    found = variables
    for key, name in MAPPINGS:
        table = params.get(key)
        if isinstance(table, dict) and isinstance(value := table.get(found.get(name, "")), str):
            found = {**found, name: value}
    return found


def expand(value: Any, variables: Mapping[str, str]) -> Any:
    """Every string in `value` (lists and tables too) with the known placeholders replaced."""
    if isinstance(value, str):
        if "{" not in value:
            return value
        return _PLACEHOLDER.sub(lambda match: variables.get(match[1], match[0]), value)
    if isinstance(value, list):
        return [expand(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: expand(item, variables) for key, item in value.items()}
    return value


def expand_params(params: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """A step's parameters with its mappings applied (and gone) and its placeholders replaced."""
    seen = mapped(params, variables)
    return {
        key: expand(value, seen)
        for key, value in params.items()
        if key not in {"os_mapping", "arch_mapping"}
    }


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a value, those in lists and tables too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_in(item)


def wants_version(value: Any) -> bool:
    """Whether a placeholder for the version is left in `value`."""
    return any("{version" in text and _VERSION.search(text) for text in strings_in(value))
