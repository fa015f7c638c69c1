"""Lint of the steps: parameters, paths, URLs, checksums, mappings and `when`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.recipes.findings import KeyPath, Remark, Severity, nearest
from pytest_sandbox.recipes.grammar import RECIPE_NAME, GrammarError, check_url
from pytest_sandbox.recipes.lint_tables import path_remarks
from pytest_sandbox.recipes.preflight import preflight
from pytest_sandbox.recipes.select import DEFAULT_ARCH, DEFAULT_OS
from pytest_sandbox.recipes.vocabulary import ACTIONS, MAPPINGS
from pytest_sandbox.targets import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.recipes.model import Metadata, Recipe, Step, When

_PATHS: Final = frozenset(
    {
        "archive",
        "binary",
        "dest",
        "file",
        "path",
        "source_dir",
        "source_file",
        "src",
        "subdir",
        "working_dir",
    }
)
_PATH_LISTS: Final = frozenset(["binaries", "executables", "files", "outputs", "patterns"])
_HEX: Final = {"sha256": 64, "sha512": 128}
_TEMPLATED: Final = {
    "download": ("url",),
    "download_archive": ("url",),
    "github_archive": ("asset_pattern",),
    "github_file": ("asset_pattern",),
    "extract": ("archive",),
}
_VERSION_LIKE: Final = re.compile(r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])")
_LIBC: Final = ("glibc", "musl")
_GPU: Final = ("nvidia", "amd", "intel", "apple", "none")


def step_remarks(recipe: Recipe) -> Iterator[Remark]:
    """What is wrong or doubtful in the steps of a recipe that loaded."""
    for step in recipe.steps:
        at: KeyPath = ("steps", step.index - 1)
        yield from preflight(step.action, step.params, at)
        yield from _paths(step, at)
        yield from _urls(step.params, at)
        yield from _checksums(step.params, at)
        yield from _mappings(step, recipe.metadata, at)
        yield from _phase(step, recipe.metadata, at)
        yield from _versions(step, at)
        for index, name in enumerate(step.dependencies or ()):
            if not RECIPE_NAME.fullmatch(name):
                message = f"{name!r} is no recipe name"
                yield Remark((*at, "dependencies", index), "error", message)
        if step.when is not None:
            yield from _when(step.when, step.action, recipe.metadata, (*at, "when"))


def _paths(step: Step, at: KeyPath) -> Iterator[Remark]:
    strict = step.action in {"install_binaries", "install_program_files"}
    for key, value in step.params.items():
        if key in _PATHS and isinstance(value, str):
            yield from path_remarks(value, (*at, key))
        elif key in _PATH_LISTS and isinstance(value, list):
            for index, item in enumerate(value):
                where = (*at, key, index)
                if isinstance(item, str):
                    yield from path_remarks(item, where, "error" if strict else "warning")
                elif isinstance(item, dict):
                    for name in ("src", "dest"):
                        if isinstance(item.get(name), str):
                            src = strict and name == "src"
                            grave: Severity = "error" if src else "warning"
                            yield from path_remarks(item[name], (*where, name), grave)


def _urls(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    for key, value in params.items():
        if isinstance(value, str) and (key == "url" or key.endswith("_url")):
            yield from _url(value, (*at, key))
        elif key == "fallback_urls" and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, str):
                    yield from _url(item, (*at, key, index))


def _url(value: str, where: KeyPath) -> Iterator[Remark]:
    """A scheme that is written must be https (http: loopback); a templated one is not known."""
    if not value or value.startswith("{"):
        return
    address = value.split(" ", maxsplit=1)[0]  # apt_repo: URL SUITE COMPONENT
    if "{" in address.split("://")[-1].split("/")[0]:
        address = "https://host" if address.startswith("https://") else address
    address = re.sub(r"[{}$']", "", address)
    try:
        check_url(address)
    except GrammarError as wrong:
        reason = str(wrong).partition(" is not ")[2]
        yield Remark(where, "error", f"{value!r} is not {reason}")


def _checksums(params: dict[str, Any], at: KeyPath) -> Iterator[Remark]:
    algorithm = params.get("checksum_algo", "sha256")
    if not isinstance(algorithm, str) or algorithm not in _HEX:
        message = f"unknown checksum_algo {algorithm!r}; expected sha256 or sha512"
        yield Remark((*at, "checksum_algo"), "error", message, nearest(str(algorithm), _HEX))
        return
    for key in ("checksum", "sha256", "key_sha256"):
        value = params.get(key)
        if value is None or value == "" or (isinstance(value, str) and "{" in value):
            continue
        digits = _HEX[algorithm] if key == "checksum" else 64
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", value):
            yield Remark((*at, key), "error", f"{value!r} is not {digits} hex digits")


def _supported(metadata: Metadata) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The os and arch words that the recipe's allowlists hold."""
    return (
        DEFAULT_OS if metadata.supported_os is None else tuple(metadata.supported_os),
        DEFAULT_ARCH if metadata.supported_arch is None else tuple(metadata.supported_arch),
    )


def _mappings(step: Step, metadata: Metadata, at: KeyPath) -> Iterator[Remark]:
    for key, known in zip(MAPPINGS, _supported(metadata), strict=True):
        mapping = step.params.get(key)
        if mapping is None:
            continue
        if not isinstance(mapping, dict):
            yield Remark((*at, key), "error", 'expected a table, like { amd64 = "x86_64" }')
            continue
        for word, value in mapping.items():
            if word not in known:
                message = f"{word!r} is not among what the recipe supports: {', '.join(known)}"
                yield Remark((*at, key, word), "error", message, nearest(word, known))
            elif not isinstance(value, str):
                yield Remark((*at, key, word), "error", "expected a string")
        placeholder = "{" + key.removesuffix("_mapping") + "}"
        if placeholder not in str({k: v for k, v in step.params.items() if k not in MAPPINGS}):
            yield Remark((*at, key), "warning", f"the step has no {placeholder} to replace")


def _phase(step: Step, metadata: Metadata, at: KeyPath) -> Iterator[Remark]:
    default = ACTIONS[step.action].phase
    if step.phase and default == "post-install" and step.phase != default:
        message = f"{step.action} runs after the installation; phase {step.phase!r} cannot move it"
        yield Remark((*at, "phase"), "error", message)
    if metadata.is_library and step.action == "set_env":
        yield Remark(at, "error", "a library cannot use set_env")
    if step.action == "run_command" and step.params.get("requires_sudo") is True:
        yield Remark((*at, "requires_sudo"), "warning", "with requires_sudo the step is skipped")


def _versions(step: Step, at: KeyPath) -> Iterator[Remark]:
    for key in _TEMPLATED.get(step.action, ()):
        value = step.params.get(key)
        if isinstance(value, str) and "{version" not in value and _VERSION_LIKE.search(value):
            message = f"{value!r} holds a fixed version; write {{version}}"
            yield Remark((*at, key), "warning", message)


def _when(when: When, action: str, metadata: Metadata, at: KeyPath) -> Iterator[Remark]:
    oses, arches = _supported(metadata)
    for word in when.os:
        if word not in oses:
            message = f"{word!r} is not among what the recipe supports: {', '.join(oses)}"
            yield Remark((*at, "os"), "error", message, nearest(word, oses))
    for platform in when.platform:
        os_name, _, arch = platform.partition("/")
        if os_name not in oses or arch not in arches:
            message = f"{platform!r} is not among the os/arch that the recipe supports"
            pairs = [f"{one}/{other}" for one in oses for other in arches]
            yield Remark((*at, "platform"), "error", message, nearest(platform, pairs))
    for key, words in (("libc", _LIBC), ("gpu", _GPU)):
        for word in getattr(when, key):
            if word not in words:
                message = f"unknown {key} {word!r}; expected {', '.join(words)}"
                yield Remark((*at, key), "error", message, nearest(word, words))
    if when.libc and when.os and "linux" not in when.os:
        yield Remark((*at, "libc"), "error", "libc needs os linux")
    if when.arch and when.arch not in arches:
        message = f"arch {when.arch!r} is never met; expected {', '.join(arches)}"
        yield Remark((*at, "arch"), "warning", message, nearest(when.arch, arches))
    family = when.linux_family
    if family and not family.startswith("_") and family not in FAMILIES:
        message = f"linux_family {family!r} is never met; expected {', '.join(FAMILIES)}"
        yield Remark((*at, "linux_family"), "warning", message, nearest(family, FAMILIES))
    libc = {"alpine": "musl", "": ""}.get(ACTIONS[action].family, "glibc")
    if libc and when.libc and libc not in when.libc:
        message = f"{action} needs {libc}: the step is never kept"
        yield Remark((*at, "libc"), "warning", message)
