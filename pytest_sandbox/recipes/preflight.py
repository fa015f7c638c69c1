"""What each action asks of its parameters, beyond the grammars that loading already checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.recipes.findings import KeyPath, Remark, nearest
from pytest_sandbox.recipes.params import strings_of
from pytest_sandbox.recipes.vocabulary import ACTIONS, PRIMITIVES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rule = Callable[[dict[str, Any], KeyPath], Iterator[Remark]]

FORMATS: Final = (
    "tar.gz",
    "tgz",
    "tar.xz",
    "txz",
    "tar.bz2",
    "tbz2",
    "tar.zst",
    "tar.lz",
    "tar",
    "zip",
)
"""Archive formats; an extract step may also say auto."""

_TEXT_LISTS: Final = frozenset(["packages", "files", "patterns", "executables"])
_LISTS: Final = _TEXT_LISTS | {"binaries", "outputs", "vars"}
_MODES: Final = ("binaries", "directory", "directory_wrapped")
_REPO: Final = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
_FORMULA: Final = re.compile(r"[A-Za-z0-9@._+-]+")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def preflight(action: str, params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    """Missing and contradictory parameters of one step."""
    for group in ACTIONS[action].required:
        given = [key for key in group if _given(params, key)]
        if not given and not (action == "install_binaries" and _whole_tree(params)):
            yield _missing(action, group, params, at)
        elif len(given) > 1:
            yield Remark(at, "error", f"{action} takes only one of {' and '.join(group)}")
    strip = params.get("strip_dirs", 0)
    if type(strip) is not int or strip < 0:
        yield Remark((*at, "strip_dirs"), "error", "expected a number of folders, 0 or more")
    rule = _RULES.get(action)
    if rule is not None:
        yield from rule(params, at)


def _given(params: dict[str, Any], key: str) -> bool:
    value = params.get(key)
    if key in _TEXT_LISTS:
        return bool(strings_of(params, key))
    if key in _LISTS:
        return isinstance(value, list) and bool(value)
    return isinstance(value, str) and bool(value)


def _whole_tree(params: dict[str, Any]) -> bool:
    """Directory mode without a list installs everything that was unpacked."""
    return str(params.get("install_mode")).startswith("directory")


def _missing(action: str, group: tuple[str, ...], params: dict[str, Any], at: KeyPath) -> Remark:
    written = [key for key in group if key in params]
    where = (*at, written[0]) if written else at
    kind = "a non-empty list" if group[0] in _LISTS else "a non-empty string"
    if group[0] in _TEXT_LISTS:
        kind = "a non-empty list of strings"
    return Remark(where, "error", f"{action} needs {' or '.join(group)}, {kind}")


def _minimum(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    if "min_version" in params:
        for key in ("version_flag", "version_regex"):
            if not params.get(key):
                yield Remark((*at, "min_version"), "error", f"min_version needs {key}")


def _require_system(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    yield from _minimum(params, at)
    packages = params.get("packages")
    if isinstance(packages, dict):
        if not packages:
            yield Remark((*at, "packages"), "error", "the table names no package manager")
        for manager in packages:
            if not strings_of(packages, manager):
                message = "expected a non-empty list of strings"
                yield Remark((*at, "packages", manager), "error", message)
    primitives = params.get("primitives")
    if primitives == []:
        yield Remark((*at, "primitives"), "error", "the list is empty")
    for index, entry in enumerate(primitives or ()):
        name = entry["action"]
        rest = {key: value for key, value in entry.items() if key != "action"}
        yield from preflight(PRIMITIVES.get(name, name), rest, (*at, "primitives", index))


def _download(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    if "checksum" in params:
        message = "a fixed checksum is for download_file; here use checksum_url"
        yield Remark((*at, "checksum"), "error", message)
    url = params.get("url")
    if isinstance(url, str) and url and "{" not in url:
        yield Remark((*at, "url"), "error", "the URL has no placeholder; use download_file")
    yield from _signature(params, at)


def _signature(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    keys = ("signature_url", "signature_key_url", "signature_key_fingerprint")
    given = [key for key in keys if params.get(key)]
    if given and len(given) != len(keys):
        missing = ", ".join(key for key in keys if key not in given)
        yield Remark((*at, given[0]), "error", f"a signature also needs {missing}")
    if given and params.get("checksum_url"):
        message = "a signature and checksum_url exclude each other"
        yield Remark((*at, "checksum_url"), "error", message)


def _archive(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    mode = params.get("install_mode") or "binaries"
    if mode not in _MODES:
        message = f"unknown install_mode {mode!r}; expected {' or '.join(_MODES)}"
        yield Remark((*at, "install_mode"), "error", message, nearest(str(mode), _MODES))
    elif mode == "binaries" and not _given(params, "binaries"):
        yield Remark(at, "error", "binaries are needed, a non-empty list")
    yield from _format(params, "archive_format", at)


def _download_archive(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    yield from _archive(params, at)
    yield from _signature(params, at)
    if "checksum_asset" in params:
        message = "checksum_asset is for github_archive; here use checksum_url"
        yield Remark((*at, "checksum_asset"), "error", message)


def _github_archive(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    yield from _archive(params, at)
    yield from _repo(params, at)
    if params.get("checksum_url") and params.get("checksum_asset"):
        message = "checksum_url and checksum_asset exclude each other"
        yield Remark((*at, "checksum_asset"), "error", message)


def _repo(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    repo = params.get("repo")
    if isinstance(repo, str) and repo and not _REPO.fullmatch(repo):
        yield Remark((*at, "repo"), "error", f"{repo!r} is not owner/name")


def _format(params: dict[str, Any], key: str, at: KeyPath) -> Iterator[Remark]:
    value = params.get(key)
    if value is None or value == "" or (isinstance(value, str) and "{" in value):
        return
    if value not in FORMATS and value != "auto":
        message = f"unknown archive format {value!r}; expected {', '.join(FORMATS)} or auto"
        yield Remark((*at, key), "error", message, nearest(str(value), FORMATS))


def _extract(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    yield from _format(params, "format", at)


def _install_binaries(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    if "binary" in params:
        message = "install_binaries takes a list, outputs or binaries"
        yield Remark((*at, "binary"), "error", message, "binaries")
    mode = params.get("install_mode") or "binaries"
    if mode not in _MODES:
        message = f"unknown install_mode {mode!r}; expected {' or '.join(_MODES)}"
        yield Remark((*at, "install_mode"), "error", message, nearest(str(mode), _MODES))


def _chmod(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    mode = params.get("mode", "0755")
    if not isinstance(mode, str) or not re.fullmatch(r"(?:0o?)?[0-7]{3,4}", mode):
        yield Remark((*at, "mode"), "error", f'{mode!r} is no mode, like "0755"')


def _set_env(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    written = params.get("vars")
    for index, entry in enumerate(written if isinstance(written, list) else ()):
        where = (*at, "vars", index)
        name = entry.get("name") if isinstance(entry, dict) else None
        value = entry.get("value") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            yield Remark(where, "error", f"{name!r} is no name of an environment variable")
        if not isinstance(value, str) or "\n" in value or "\0" in value:
            yield Remark(where, "error", "value must be a string of one line")


def _homebrew(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    formula = params.get("formula")
    if isinstance(formula, str) and formula and not _FORMULA.fullmatch(formula):
        yield Remark((*at, "formula"), "error", f"{formula!r} is no formula name")


def _apply_patch(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    if params.get("url") and not (params.get("sha256") or params.get("checksum")):
        yield Remark((*at, "url"), "error", "a patch from a URL needs sha256")


def _fossil(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    repo = params.get("repo")
    if isinstance(repo, str) and repo and not repo.startswith("https://"):
        yield Remark((*at, "repo"), "error", f"{repo!r} does not begin with https://")


_RULES: Final[dict[str, Rule]] = {
    "require_command": _minimum,
    "require_system": _require_system,
    "download": _download,
    "download_archive": _download_archive,
    "github_archive": _github_archive,
    "github_file": _repo,
    "extract": _extract,
    "install_binaries": _install_binaries,
    "chmod": _chmod,
    "set_env": _set_env,
    "homebrew": _homebrew,
    "apply_patch": _apply_patch,
    "fossil_archive": _fossil,
}
