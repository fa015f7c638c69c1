"""Lint of metadata, version, verify, patches and resources (recipes.md 1.1, 1.2, 2.4)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.recipes.findings import KeyPath, Remark, Severity, nearest
from pytest_sandbox.recipes.grammar import RECIPE_NAME
from pytest_sandbox.recipes.params import text_of
from pytest_sandbox.recipes.select import DEFAULT_ARCH, DEFAULT_OS, platforms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.recipes.model import Metadata, Patch, Recipe, Verify, VersionSource

SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_RUNTIME_NAME: Final = re.compile(r"[a-z0-9._-]+")
_ECOSYSTEM: Final = re.compile(r"[a-z][a-z0-9-]*")
_VERSION_FORMATS: Final = ("", "raw", "semver", "semver_full", "strip_v")
_SCHEMES: Final = ("javascript:", "data:", "vbscript:")
_DANGEROUS: Final = re.compile(
    r"\brm\b|>\s*/(?!dev/null)|\|\s*sh\b|\|\||&&|\beval\b|\bexec\b|\$\(|`"
)
_SOURCES: Final = frozenset(
    {
        "http_json",
        "pypi",
        "crates_io",
        "rubygems",
        "npm",
        "nixpkgs",
        "go_toolchain",
        "goproxy",
        "metacpan",
        "homebrew",
        "cask",
        "tap",
        "nodejs_dist",
        "github_releases",
        "github_tags",
    }
)
_INFERRED: Final = {
    "npm": "npm_install",
    "pypi": "pipx_install",
    "crates_io": "cargo_install",
    "rubygems": "gem_install",
    "metacpan": "cpan_install",
    "goproxy": "go_install",
}
"""Version sources that an install step already implies."""
_VERSIONED: Final = frozenset(
    {*_INFERRED.values(), "github_archive", "github_file", "fossil_archive", "homebrew"}
)
"""Actions that say where versions come from."""


def table_remarks(recipe: Recipe, document: dict[str, Any]) -> Iterator[Remark]:
    """What is wrong or doubtful in every table but the steps."""
    yield from _metadata(recipe.metadata)
    yield from _names(recipe.metadata)
    yield from _platforms(recipe.metadata)
    yield from _version(recipe, recipe.version)
    if recipe.verify is not None:
        yield from _verify(recipe.verify, library=recipe.metadata.is_library)
    for index, patch in enumerate(recipe.patches):
        yield from _patch(patch, ("patches", index))
    for index, resource in enumerate(recipe.resources):
        if resource.checksum and not SHA256.fullmatch(resource.checksum):
            yield _error(("resources", index, "checksum"), "expected 64 hex digits (SHA-256)")
        yield from _inside(resource.dest, ("resources", index, "dest"))
    yield from _shadowed(recipe, document)


def _error(where: KeyPath, message: str, suggestion: str = "") -> Remark:
    return Remark(where, "error", message, suggestion)


def _warning(where: KeyPath, message: str, suggestion: str = "") -> Remark:
    return Remark(where, "warning", message, suggestion)


def path_remarks(value: str, where: KeyPath, absolute: Severity = "warning") -> Iterator[Remark]:
    """`..` in a path is an error; an absolute path is as grave as `absolute` says."""
    if ".." in re.split(r"[/\\]", value):
        yield _error(where, f"{value!r} leaves its folder: `..` is not allowed in a path")
    if value.startswith("/"):
        yield Remark(where, absolute, f"{value!r} is an absolute path")


def _inside(value: str, where: KeyPath) -> Iterator[Remark]:
    yield from path_remarks(value, where)


def _metadata(metadata: Metadata) -> Iterator[Remark]:
    if metadata.name != metadata.name.lower():
        yield _warning(("metadata", "name"), "lower case is recommended")
    if not metadata.description:
        yield _warning(("metadata", "description"), "a description is missing")
    homepage = metadata.homepage
    if homepage and not homepage.startswith("https://"):
        yield _error(("metadata", "homepage"), f"{homepage!r} does not begin with https://")
    if any(scheme in homepage.lower() for scheme in _SCHEMES):
        yield _error(("metadata", "homepage"), f"{homepage!r} holds a script or data URL")
    if metadata.version_format not in _VERSION_FORMATS:
        yield _warning(
            ("metadata", "version_format"),
            f"unknown version_format {metadata.version_format!r} means raw",
            nearest(metadata.version_format, _VERSION_FORMATS[1:]),
        )
    if metadata.type not in {"", "tool", "library"}:
        yield _error(
            ("metadata", "type"),
            f"{metadata.type!r} is neither tool nor library",
            nearest(metadata.type, ("tool", "library")),
        )
    for index, binary in enumerate(metadata.binaries or ()):
        yield from _inside(binary, ("metadata", "binaries", index))


def _names(metadata: Metadata) -> Iterator[Remark]:
    for key in ("dependencies", "extra_dependencies"):
        for index, name in enumerate(getattr(metadata, key) or ()):
            if not RECIPE_NAME.fullmatch(name):
                yield _error(("metadata", key, index), f"{name!r} is no recipe name")
    for key in ("runtime_dependencies", "extra_runtime_dependencies"):
        names: list[str] = getattr(metadata, key) or []
        for index, name in enumerate(names):
            where = ("metadata", key, index)
            if not _RUNTIME_NAME.fullmatch(name) or name.startswith("-") or ".." in name:
                yield _error(where, f"{name!r} is no recipe name: a-z, 0-9 and ._- only")
            if name in names[:index]:
                yield _error(where, f"{name!r} is listed twice")
    for ecosystem, names in metadata.satisfies.items():
        listed = ("metadata", "satisfies", ecosystem)
        if not _ECOSYSTEM.fullmatch(ecosystem):
            yield _error(listed, f"{ecosystem!r} is no ecosystem name: a-z, 0-9 and - only")
        if metadata.name in names:
            yield _warning(listed, f"lists the recipe's own name {metadata.name!r}: no effect")


def _platforms(metadata: Metadata) -> Iterator[Remark]:
    for index, libc in enumerate(metadata.supported_libc or ()):
        if libc not in {"glibc", "musl"}:
            yield _error(
                ("metadata", "supported_libc", index),
                f"{libc!r} is neither glibc nor musl",
                nearest(libc, ("glibc", "musl")),
            )
    for key, known in (("supported_os", DEFAULT_OS), ("supported_arch", DEFAULT_ARCH)):
        for index, word in enumerate(getattr(metadata, key) or ()):
            if word not in known:
                yield _warning(
                    ("metadata", key, index), f"{word!r} is never met", nearest(word, known)
                )
    oses = metadata.supported_os if metadata.supported_os is not None else DEFAULT_OS
    arches = metadata.supported_arch if metadata.supported_arch is not None else DEFAULT_ARCH
    for index, denied in enumerate(metadata.unsupported_platforms or ()):
        where = ("metadata", "unsupported_platforms", index)
        parts = denied.split("/")
        if len(parts) == 3 and parts[2] not in {"glibc", "musl"}:
            yield _error(where, f"{denied!r}: {parts[2]!r} is neither glibc nor musl")
        elif len(parts) not in {2, 3} or parts[0] not in oses or parts[1] not in arches:
            yield _warning(where, f"{denied!r} is not among the supported os/arch: no effect")
    if not platforms(metadata):
        key = "supported_os" if metadata.supported_os is not None else "unsupported_platforms"
        if metadata.supported_arch == []:
            key = "supported_arch"
        yield _error(("metadata", key), "every platform is excluded")


def _version(recipe: Recipe, version: VersionSource) -> Iterator[Remark]:
    if version.source and version.source not in _SOURCES:
        yield _warning(
            ("version", "source"),
            f"unknown version source {version.source!r}: no version can be found",
            nearest(version.source, _SOURCES),
        )
    if version.url and not version.url.startswith("https://"):
        yield _error(("version", "url"), f"{version.url!r} does not begin with https://")
    if version.source == "http_json":
        for key in ("url", "version_path"):
            if not getattr(version, key):
                yield _error(("version", "source"), f"source http_json needs version.{key}")
    actions = {step.action for step in recipe.steps}
    checked = recipe.verify.literals() if recipe.verify else ()
    if not (version.source or version.github_repo or actions & _VERSIONED) and any(
        "{version}" in pattern for pattern in checked
    ):
        message = "a pattern uses {version}, and nothing says where versions come from"
        yield _warning(("verify",), message)
    if _INFERRED.get(version.source) in actions:
        yield _warning(
            ("version", "source"), f"redundant: {_INFERRED[version.source]} already says so"
        )
    repos = {
        text_of(step.params, "repo")
        for step in recipe.steps
        if step.action in {"github_archive", "github_file"}
    }
    if version.github_repo and version.github_repo in repos and not version.tag_prefix:
        yield _warning(("version", "github_repo"), "redundant: the steps already name it")


def _verify(verify: Verify, *, library: bool) -> Iterator[Remark]:
    at = "verify"
    yield from _patterns(verify)
    if verify.mode == "functional":
        yield _error((at, "mode"), "mode functional is reserved; use version or output")
    elif verify.mode not in {"", "version", "output"}:
        yield _error(
            (at, "mode"),
            f"unknown mode {verify.mode!r}; expected version or output",
            nearest(verify.mode, ("version", "output")),
        )
    elif verify.mode == "output" and not verify.reason:
        yield _error((at, "mode"), "mode output needs a reason")
    if library and verify.additional:
        yield _error((at, "additional"), "a library has no additional checks")
    for index, check in enumerate(verify.additional):
        for key in ("command", "pattern"):
            if not getattr(check, key):
                yield _error((at, "additional", index), f"{key} is required")
    commands: Iterable[tuple[KeyPath, str]] = (
        ((at, "command"), verify.command),
        *(((at, "additional", i, "command"), c.command) for i, c in enumerate(verify.additional)),
    )
    for where, command in commands:
        found = _DANGEROUS.search(command)
        if found:
            yield _warning(where, f"{found[0]!r} is doubtful in a check")


def _patterns(verify: Verify) -> Iterator[Remark]:
    if verify.patterns is None:
        return
    where = ("verify", "patterns")
    if verify.pattern:
        yield _error(where, "pattern and patterns exclude each other")
    if not verify.patterns:
        yield _error(where, "the list is empty")
    for index, pattern in enumerate(verify.patterns):
        if not pattern:
            yield _error((*where, index), "the pattern is empty")


def _patch(patch: Patch, where: KeyPath) -> Iterator[Remark]:
    if bool(patch.url) == bool(patch.data):
        yield _error(where, "exactly one of url and data is required")
    if patch.url and not patch.checksum:
        yield _error(where, "checksum is required with url")
    if patch.checksum and not SHA256.fullmatch(patch.checksum):
        yield _error((*where, "checksum"), "expected 64 hex digits (SHA-256)")
    yield from _inside(patch.subdir, (*where, "subdir"))


def _shadowed(recipe: Recipe, document: dict[str, Any]) -> Iterator[Remark]:
    """Dependencies of steps that metadata.dependencies replaces."""
    if recipe.metadata.dependencies is None:
        return
    for index, step in enumerate(document["steps"]):
        if "dependencies" in step:
            yield _warning(
                ("steps", index, "dependencies"),
                "shadowed: metadata.dependencies replaces what steps need",
            )
