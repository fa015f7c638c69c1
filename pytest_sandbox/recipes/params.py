"""The lenient reading of a step's parameters, as the registry's own actions read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def text_of(params: Mapping[str, Any], key: str) -> str:
    """A string parameter; empty where it is absent or of another type."""
    value = params.get(key)
    return value if isinstance(value, str) else ""


def strings_of(params: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list parameter; empty where it is absent, no list, or one item of it is no string."""
    value = params.get(key)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return ()
