"""The silent traps of the format: what a recipe says and the registry's own loader ignores.

Cheap enough for every collection: it looks at the parsed document only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.recipes.findings import KeyPath, Remark, nearest
from pytest_sandbox.recipes.vocabulary import (
    ACTIONS,
    INSTALL_ACTIONS,
    METADATA_KEYS,
    PATCH_KEYS,
    PRIMITIVES,
    RESOURCE_KEYS,
    STEP_KEYS,
    TABLES,
    VERIFY_KEYS,
    VERSION_KEYS,
    WHEN_KEYS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

_SINGLE: Final = ("arch", "linux_family", "package_manager")
_LISTS: Final = ("platform", "os", "libc", "gpu")
_KNOWN_PARAMS: Final = {
    name: None if action.open else action.params | STEP_KEYS for name, action in ACTIONS.items()
}
_KNOWN_PRIMITIVE: Final = {
    short: ACTIONS[full].params | {"action"}
    for short, full in (*PRIMITIVES.items(), *((full, full) for full in PRIMITIVES.values()))
}
_TYPED: Final = (
    ("metadata", METADATA_KEYS),
    ("version", VERSION_KEYS),
    ("verify", VERIFY_KEYS),
)
_LISTED: Final = (("patches", PATCH_KEYS), ("resources", RESOURCE_KEYS))


def traps(document: dict[str, Any]) -> list[Remark]:
    """Warnings about a document, whether it loaded as a recipe or not."""
    found: list[Remark] = []
    if not TABLES.issuperset(document):
        _unknown(found, document, TABLES, (), "table")
    for name, known in _TYPED:
        table = document.get(name)
        if isinstance(table, dict) and not known.issuperset(table):
            _unknown(found, table, known, (name,), "key")
    for name, known in _LISTED:
        written = document.get(name, ())
        for index, table in enumerate(written if isinstance(written, list) else ()):
            if isinstance(table, dict) and not known.issuperset(table):
                _unknown(found, table, known, (name, index), "key")
    steps = document.get("steps", ())
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if isinstance(step, dict):
            _step(found, step, ("steps", index))
    return found


def _unknown(
    found: list[Remark],
    table: Iterable[str],
    known: AbstractSet[str],
    where: KeyPath,
    what: str,
) -> None:
    for key in table:
        if key not in known:
            message = f"unknown {what} {key!r} is ignored"
            found.append(Remark((*where, key), "warning", message, nearest(key, known)))


def _step(found: list[Remark], step: dict[str, Any], where: KeyPath) -> None:
    when = step.get("when")
    if when is not None:
        _when(found, when, (*where, "when"))
    action = step.get("action")
    known = _KNOWN_PARAMS.get(action) if isinstance(action, str) else None
    if known is not None and not known.issuperset(step):
        _unknown(found, step, known, where, f"parameter of {action}")
    for key, value in step.items():
        if type(value) is list:
            _mixed(found, value, (*where, key))
    if action == "require_system":
        _require_system(found, step, where)


def _mixed(found: list[Remark], items: list[Any], where: KeyPath) -> None:
    """A list of strings with one other item in it vanishes whole."""
    texts = sum(type(item) is str for item in items)
    if not texts or texts == len(items):
        return
    # binaries may mix "bin/x" and { src, dest }; package names may not
    if where[-1] != "binaries" or not all(type(item) in (str, dict) for item in items):
        message = "the list mixes strings with other values, and so all of it is ignored"
        found.append(Remark(where, "warning", message))


def _when(found: list[Remark], when: object, where: KeyPath) -> None:
    if not isinstance(when, dict):
        message = "`when` is no table, and so the step is unconditional"
        found.append(Remark(where, "warning", message))
        return
    if not WHEN_KEYS.issuperset(when):
        _unknown(found, when, WHEN_KEYS, where, "key")
    for key in _SINGLE:
        if key in when and not isinstance(when[key], str):
            message = (
                f"{key} takes one string; anything else is ignored, and the step is not limited"
            )
            found.append(Remark((*where, key), "warning", message))
    for key in _LISTS:
        value = when.get(key)
        if value is None or isinstance(value, str):
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            message = f"{key} takes strings; anything else is ignored"
            found.append(Remark((*where, key), "warning", message))


def _require_system(found: list[Remark], step: dict[str, Any], where: KeyPath) -> None:
    packages = step.get("packages")
    if isinstance(packages, dict):
        if not INSTALL_ACTIONS.keys() >= packages.keys():
            _unknown(
                found, packages, INSTALL_ACTIONS.keys(), (*where, "packages"), "package manager"
            )
        for manager, names in packages.items():
            if isinstance(names, list):
                _mixed(found, names, (*where, "packages", manager))
    primitives = step.get("primitives")
    for index, entry in enumerate(primitives if isinstance(primitives, list) else ()):
        if not isinstance(entry, dict):
            continue
        at = (*where, "primitives", index)
        known = _KNOWN_PRIMITIVE.get(str(entry.get("action")))
        if known is not None and not known.issuperset(entry):
            _unknown(found, entry, known, at, f"parameter of {entry['action']}")
        for key, value in entry.items():
            if isinstance(value, list):
                _mixed(found, value, (*at, key))
