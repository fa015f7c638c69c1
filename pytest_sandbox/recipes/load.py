"""TOML -> Recipe. Reading is strict where the registry is (tables with types) and lenient where it
is lenient (steps); every error says file, line, key and what was expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import tomli

from pytest_sandbox.errors import RecipeError, UsageError
from pytest_sandbox.recipes.findings import Finding, KeyPath, Remark, key_text, nearest
from pytest_sandbox.recipes.grammar import GrammarError, check_params, check_recipe_name
from pytest_sandbox.recipes.lines import line_of
from pytest_sandbox.recipes.model import (
    Metadata,
    Patch,
    Recipe,
    Resource,
    Step,
    Verify,
    VersionSource,
    When,
)
from pytest_sandbox.recipes.require_system import RequireSystemError, read_params
from pytest_sandbox.recipes.traps import traps
from pytest_sandbox.recipes.vocabulary import ACTIONS, STEP_KEYS, Action

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_MAX_BYTES: Final = 4 << 20
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class _Fault(Exception):
    """What is wrong, before its line is known."""

    def __init__(self, message: str, where: KeyPath, next_step: str = "") -> None:
        super().__init__(message)
        self.where = where
        self.next_step = next_step


def parse_recipe(text: str, path: str = "") -> Recipe:
    """The recipe in `text`; `path` is for messages. Raises RecipeError with line and key."""
    return recipe_of(parse_document(text, path), text, path)


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file. Raises RecipeError, also for a file that cannot be read."""
    name = os.fspath(path)
    return parse_recipe(read_text(name), name)


def read_recipe(path: str | os.PathLike[str]) -> tuple[Recipe, list[Finding]]:
    """load_recipe, with the warnings about what the format silently ignores."""
    name = os.fspath(path)
    text = read_text(name)
    document = parse_document(text, name)
    recipe = recipe_of(document, text, name)
    return recipe, place(traps(document), text, name)


def find_recipes(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The recipe files that `paths` name: files as they are, folders as every *.toml below, sorted.

    Raises UsageError for a path that is not there.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found.update(dict.fromkeys(sorted(_recipes_below(path))))
        elif path.exists():
            found[path] = None
        else:
            msg = f"{path}: no such file or folder"
            raise UsageError(msg, next_step="name a recipe file or a folder of recipes")
    return list(found)


def _recipes_below(folder: Path) -> Iterator[Path]:
    """The *.toml files below a folder, symlinked folders too (as pytest collects), each once."""
    seen: set[str] = set()
    for here, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        paths = (Path(here, name) for name in files if name.endswith(".toml"))
        yield from (path for path in paths if path.is_file())


def read_text(path: str) -> str:
    """The file's text. Raises RecipeError where it cannot be read or is not UTF-8."""
    try:
        file = Path(path)
        status = file.stat()
        if status.st_size > _MAX_BYTES:
            msg = f"the recipe is larger than {_MAX_BYTES >> 20} MiB"
            raise RecipeError(msg, path=path, next_step="name a recipe file")
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):
            msg = "cannot read the recipe: it is no regular file"
            raise RecipeError(msg, path=path, next_step="name a readable TOML file")
        data = file.read_bytes()
    except OSError as wrong:
        reason = wrong.strerror or str(wrong)
        msg = f"cannot read the recipe: {reason}"
        raise RecipeError(msg, path=path, next_step="name a readable TOML file") from None
    except ValueError:  # a path with a NUL
        msg = "cannot read the recipe: its path is no path"
        raise RecipeError(msg, path=path, next_step="name a readable TOML file") from None
    try:
        return data.decode("utf-8-sig")  # an editor's byte order mark says nothing
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        msg = f"byte 0x{data[wrong.start]:02x} is not UTF-8"
        raise RecipeError(msg, path=path, line=line, next_step="save the file as UTF-8") from None


def parse_document(text: str, path: str = "") -> dict[str, Any]:
    """The TOML document. Raises RecipeError with the line of a syntax error."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as wrong:
        line = min(wrong.lineno, text.count("\n") + 1)
        what = f"not valid TOML: {wrong.msg} (column {wrong.colno})"
    except RecursionError:
        line, what = None, "not valid TOML: nested too deeply"
    raise RecipeError(what, path=path, line=line, next_step="correct the TOML syntax")


def recipe_of(document: dict[str, Any], text: str, path: str) -> Recipe:
    """The recipe in a parsed document; `text` is only looked at for the line of an error."""
    try:
        return _recipe(document, path)
    except _Fault as fault:
        key = key_text(fault.where)
        what = f"{key}: {fault}" if key else str(fault)
        raise RecipeError(
            what,
            path=path,
            line=line_of(text, fault.where) or None,
            key=key,
            next_step=fault.next_step.format(path=path or "RECIPE"),
        ) from None


def place(remarks: Sequence[Remark], text: str, path: str) -> list[Finding]:
    """Remarks with their lines, in the order of the file."""
    found = [
        Finding(
            path=path,
            line=line_of(text, remark.where),
            key=key_text(remark.where),
            severity=remark.severity,
            message=remark.message,
            suggestion=remark.suggestion,
        )
        for remark in remarks
    ]
    return sorted(found, key=lambda finding: finding.line)


def _recipe(document: dict[str, Any], path: str) -> Recipe:
    metadata = _table(document, "metadata", Metadata) or Metadata()
    version = _table(document, "version", VersionSource)
    verify = _table(document, "verify", Verify)
    patches = _tables(document, "patches", Patch)
    resources = _tables(document, "resources", Resource)
    written = document.get("steps", [])
    if not isinstance(written, list):
        msg = f"expected [[steps]], a list of tables, got {_kind(written)}"
        raise _Fault(msg, ("steps",), "write [[steps]] with double brackets")
    whens = [_when(entry, index) for index, entry in enumerate(written)]
    if not metadata.name:
        where: KeyPath = ("metadata", "name") if "metadata" in document else ()
        msg = "metadata.name is required" if not where else "a name is required"
        raise _Fault(msg, where, 'write name = "..." into [metadata]')
    try:
        check_recipe_name(metadata.name)
    except GrammarError as wrong:
        raise _Fault(str(wrong), ("metadata", "name"), "correct the name") from None
    if not written:
        msg = "at least one [[steps]] table is required"
        raise _Fault(msg, (), "write a [[steps]] table")
    steps = tuple(
        _step(entry, index, when)
        for index, (entry, when) in enumerate(zip(written, whens, strict=True))
    )
    if not metadata.is_library and (verify is None or not verify.command):
        msg = "command is required (only a library needs none)"
        raise _Fault(msg, ("verify", "command"), 'write [verify] with command = "..."')
    for step in steps:
        _analyse(step)
    return Recipe(
        metadata=metadata,
        steps=steps,
        version=version or VersionSource(),
        verify=verify,
        patches=patches,
        resources=resources,
        path=path,
    )


def _table(document: dict[str, Any], name: str, kind: type[_Struct]) -> _Struct | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        msg = f"expected a table, got {_kind(value)}"
        raise _Fault(msg, (name,), f"write [{name}]")
    return _convert(value, kind, (name,))


def _tables(document: dict[str, Any], name: str, kind: type[_Struct]) -> tuple[_Struct, ...]:
    value = document.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        msg = f"expected a list of tables, got {_kind(value)}"
        raise _Fault(msg, (name,), f"write [[{name}]]")
    return tuple(_convert(entry, kind, (name, index)) for index, entry in enumerate(value))


def _convert(value: object, kind: type[_Struct], where: KeyPath) -> _Struct:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        what, _, at = str(wrong).partition(" - at ")
        below = _below(at)
        shown = what.replace("`", "").replace(" | null", "").replace("object", "table")
        shown = shown.replace("Expected", "expected", 1).replace("array", "list")
        raise _Fault(shown, (*where, *below), "correct the value's type") from None


def _below(at: str) -> KeyPath:
    """`$.additional[0].pattern` as a key path; `$[...]` (any key of a table) ends it."""
    parts: list[str | int] = []
    for word in at.strip("`").removeprefix("$").replace("[", ".[").split("."):
        if not word:
            continue
        if not word.startswith("["):
            parts.append(word)
        elif word[1:-1].isdigit():
            parts.append(int(word[1:-1]))
        else:
            break
    return tuple(parts)


def _kind(value: object) -> str:
    names = {dict: "a table", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "a date")


def _texts(value: object) -> tuple[str, ...]:
    """A list of strings (others drop out) or one string; empty means absent."""
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list):
        return tuple(item for item in value if isinstance(item, str))
    return ()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _when(entry: object, index: int) -> When | None:
    if not isinstance(entry, dict):
        msg = f"expected a table, got {_kind(entry)}"
        raise _Fault(msg, ("steps", index), "write [[steps]]")
    written = entry.get("when")
    if not isinstance(written, dict) or not written:
        return None
    get = written.get
    when = When(
        platform=_texts(get("platform")),
        os=_texts(get("os")),
        arch=_text(get("arch")),
        linux_family=_text(get("linux_family")),
        libc=_texts(get("libc")),
        gpu=_texts(get("gpu")),
        package_manager=_text(get("package_manager")),
    )
    if when.platform and when.os:
        msg = "platform and os exclude each other"
        raise _Fault(msg, ("steps", index, "when"), "keep one of the two")
    return when


def _step(entry: dict[str, Any], index: int, when: When | None) -> Step:
    action = entry.get("action")
    if not isinstance(action, str) or not action:
        msg = "action is required, a string"
        at: KeyPath = ("steps", index)
        odd = next((key for key in entry if nearest(key, ["action"])), "")
        if "action" not in entry and odd:
            raise _Fault(msg, (*at, odd), f"write action instead of {odd}")
        where = (*at, "action") if "action" in entry else at
        raise _Fault(msg, where, 'write action = "..."')
    return Step(
        action=action,
        index=index + 1,
        when=when,
        params={key: value for key, value in entry.items() if key not in STEP_KEYS},
        dependencies=_texts(entry["dependencies"]) if "dependencies" in entry else None,
        phase=_text(entry.get("phase")),
        note=_text(entry.get("note")),
        description=_text(entry.get("description")),
    )


def _analyse(step: Step) -> None:
    at: KeyPath = ("steps", step.index - 1)
    action = ACTIONS.get(step.action)
    if action is None:
        meant = nearest(step.action, ACTIONS)
        msg = f"unknown action {step.action!r}"
        raise _Fault(msg, (*at, "action"), f"write {meant!r}" if meant else "use a known action")
    if step.when is not None:
        conflict = platform_conflict(action, step.when)
        if conflict:
            raise _Fault(conflict, (*at, "when"), "change `when` or the action")
    if action.name == "require_system":
        try:
            read_params(step.params)
        except RequireSystemError as wrong:
            raise _Fault(str(wrong), (*at, *wrong.where), wrong.next_step) from None
    elif action.system:
        try:
            check_params(action.name, step.params)
        except GrammarError as wrong:
            raise _Fault(str(wrong), (*at, *wrong.where), "correct the value") from None


def platform_conflict(action: Action, when: When) -> str:
    """Why `when` and the action's built-in platform can never hold together; empty if they can.

    Single values only, as the registry checks: a list of several escapes.
    """
    os_name, family = action.os, action.family or when.linux_family
    if os_name and when.platform and all(p.split("/")[0] != os_name for p in when.platform):
        return (
            f"{action.name} runs on {os_name} only, but platform lists {', '.join(when.platform)}"
        )
    if os_name and when.os and os_name not in when.os:
        return f"{action.name} runs on {os_name} only, but os lists {', '.join(when.os)}"
    if action.family and when.linux_family and when.linux_family != action.family:
        return f"{action.name} is for {action.family}, but linux_family is {when.linux_family!r}"
    os_name = os_name or (when.os[0] if len(when.os) == 1 else "")
    linux_only = f"linux_family {family!r}" if family else ""
    if not family and len(when.libc) == 1:
        linux_only = f"libc {when.libc[0]!r}"
    return f"{linux_only} never holds on darwin" if linux_only and os_name == "darwin" else ""
