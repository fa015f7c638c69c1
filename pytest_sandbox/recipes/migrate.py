"""Rewriting recipes that still have an install_guide: packages where they are known, `manual` steps
for the rest. The text around is kept as it is, comments too."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomli
import tomli_w

from pytest_sandbox.recipes.guides import Advice, advise
from pytest_sandbox.recipes.lines import positions
from pytest_sandbox.recipes.load import parse_document
from pytest_sandbox.targets import libc_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.recipes.findings import KeyPath

_GUIDE: Final = "install_guide"


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A rewritten recipe. `changed` says whether there was anything to do; `comments_kept` is false
    where the text could not be edited in place and was written anew."""

    text: str
    changed: bool
    comments_kept: bool = True


def migrate_text(text: str, path: str = "") -> Migration:
    """The recipe in today's form. Raises RecipeError for text that is no TOML."""
    document = parse_document(text, path)
    steps = document.get("steps")
    if not isinstance(steps, list):
        return Migration(text=text, changed=False)
    edits: dict[int, tuple[list[dict[str, Any]], dict[str, list[str]]]] = {}
    for index, step in enumerate(steps):
        if isinstance(step, dict) and step.get("action") == "require_system" and _GUIDE in step:
            edits[index] = _edit(step)
    if not edits:
        return Migration(text=text, changed=False)
    wanted = _rebuilt(document, edits)
    edited = _edited(text, document, edits)
    if edited is not None and _reads_as(edited, wanted):
        return Migration(text=edited, changed=True)
    return Migration(text=tomli_w.dumps(wanted), changed=True, comments_kept=False)


def _edit(step: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The steps that go before this one, and the packages that it gets."""
    have = step.get("packages")
    have = have if isinstance(have, dict) else {}
    command = step.get("command")
    found = advise(command if isinstance(command, str) else "", step[_GUIDE], have)
    packages = {} if "primitives" in step else found.packages
    return _before(found, step.get("when")), packages


def _before(found: Advice, when: object) -> list[dict[str, Any]]:
    clause = when if isinstance(when, dict) else {}
    steps: list[dict[str, Any]] = []
    if found.casks and _merged(clause, {"os": ["darwin"]}) is not None:
        step: dict[str, Any] = {"action": "brew_cask", "packages": found.casks}
        steps.append({**step, "when": clause} if clause else step)
    for text, own in found.manual:
        merged = _merged(clause, own)
        if merged is not None:
            step = {"action": "manual", "text": text}
            steps.append({**step, "when": merged} if merged else step)
    return steps


def _merged(clause: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Both clauses at once; None where they can never hold together."""
    os_name = _os(own)
    platforms = clause.get("platform") or []
    listed = clause.get("os") or []
    oses = [listed] if isinstance(listed, str) else listed
    families = clause.get("linux_family") or own.get("linux_family")
    if oses and os_name not in oses:
        return None
    if "linux_family" in own and families != own["linux_family"]:
        return None
    if "os" in own and os_name == "darwin" and clause.get("linux_family"):
        return None
    libcs = clause.get("libc") or []
    if "linux_family" in own and libcs and libc_of("linux", own["linux_family"]) not in libcs:
        return None
    if platforms:
        allowed = [platforms] if isinstance(platforms, str) else platforms
        allowed = [one for one in allowed if one.startswith(f"{os_name}/")]
        if "platform" in own:
            allowed = [one for one in allowed if one in own["platform"]]
        return {**clause, "platform": allowed} if allowed else None
    rest = {key: value for key, value in clause.items() if key != "os"}
    if os_name == "darwin":
        rest.pop("libc", None)  # not consulted there, and an error beside darwin
    return {**rest, **own}


def _os(own: Mapping[str, Any]) -> str:
    if "platform" in own:
        return str(own["platform"][0]).partition("/")[0]
    return str(own["os"][0]) if "os" in own else "linux"


def _rebuilt(
    document: dict[str, Any],
    edits: Mapping[int, tuple[list[dict[str, Any]], dict[str, list[str]]]],
) -> dict[str, Any]:
    """The document that the new text must read as."""
    wanted = copy.deepcopy(document)
    steps: list[Any] = []
    for index, step in enumerate(wanted["steps"]):
        if index in edits:
            before, packages = edits[index]
            steps += before
            del step[_GUIDE]
            if packages:
                step["packages"] = {**step.get("packages", {}), **packages}
        steps.append(step)
    wanted["steps"] = steps
    return wanted


def _edited(
    text: str,
    document: dict[str, Any],
    edits: Mapping[int, tuple[list[dict[str, Any]], dict[str, list[str]]]],
) -> str | None:
    """The text with only the lines changed that have to; None where that is not possible."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    spans = {
        where: (text.count("\n", 0, start), text.count("\n", 0, max(start, stop - 1)))
        for where, (start, stop) in positions(text).items()
    }
    for index in sorted(edits, reverse=True):
        at: KeyPath = ("steps", index)
        before, packages = edits[index]
        if at not in spans or not lines[spans[at][0]].lstrip().startswith("[["):
            return None
        top = spans[at][0]
        removed = _lines_of(spans, (*at, _GUIDE))
        step = document["steps"][index]
        listed = {**step.get("packages", {}), **packages} if packages else None
        if listed is not None:
            removed |= _lines_of(spans, (*at, "packages"))
        own = [
            spans[key][1]
            for key in spans
            if len(key) == 3
            and key[:2] == at
            and key[2] not in {_GUIDE, "packages"}
            and not lines[spans[key][0]].lstrip().startswith("[")
        ]
        last = max(own, default=top)
        inserted = [] if listed is None else [f"packages = {_value(listed)}{end}"]
        if not lines[last].endswith("\n"):
            lines[last] += end
        tail = [
            line for number, line in enumerate(lines) if number > last and number not in removed
        ]
        body = [line for number, line in enumerate(lines[: last + 1]) if number not in removed]
        start = top
        while start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        fresh = [line for one in before for line in _step_lines(one, end)]
        if _only_blank(tail):
            tail = []
        elif inserted and not tail[0].strip() and len(tail) > 1 and not tail[1].strip():
            tail = tail[1:]
        lines = body[:start] + fresh + body[start:] + inserted + tail
    return "".join(lines)


def _lines_of(spans: Mapping[KeyPath, tuple[int, int]], where: KeyPath) -> set[int]:
    """Every line on which something of `where` is written."""
    found: set[int] = set()
    for key, (first, last) in spans.items():
        if key[: len(where)] == where:
            found |= set(range(first, last + 1))
    return found


def _only_blank(lines: list[str]) -> bool:
    return all(not line.strip() for line in lines)


def _step_lines(step: Mapping[str, Any], end: str) -> list[str]:
    written = [f"{key} = {_value(value)}" for key, value in step.items()]
    return [f"{line}{end}" for line in ("[[steps]]", *written, "")]


def _value(value: object) -> str:
    """A value on one line, as tomli-w writes its strings."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return tomli_w.dumps({"x": value}).partition(" = ")[2].rstrip("\n")


def _key(key: str) -> str:
    return tomli_w.dumps({key: 0}).partition(" = ")[0]


def _reads_as(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return tomli.loads(text) == wanted
    except tomli.TOMLDecodeError:
        return False
