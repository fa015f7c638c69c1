"""The recipe format as types; names and defaults are the registry's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pytest_sandbox.targets import Target


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """`[metadata]`. A list that is None was not written; an empty one was (and means: nothing)."""

    name: str = ""
    description: str = ""
    homepage: str = ""
    version_format: str = ""
    type: str = ""
    tier: int = 0
    requires_sudo: bool = False
    llm_validation: str = ""
    curated: bool = False
    tags: list[str] = []
    dependencies: list[str] | None = None
    runtime_dependencies: list[str] | None = None
    extra_dependencies: list[str] | None = None
    extra_runtime_dependencies: list[str] | None = None
    binaries: list[str] | None = None
    satisfies: dict[str, list[str]] = {}
    supported_os: list[str] | None = None
    supported_arch: list[str] | None = None
    supported_libc: list[str] | None = None
    unsupported_platforms: list[str] | None = None
    unsupported_reason: str = ""

    @property
    def is_library(self) -> bool:
        """Libraries need no verify table."""
        return self.type == "library"


class VersionSource(msgspec.Struct, frozen=True, kw_only=True):
    """`[version]`: where versions come from. Empty strings mean: not set."""

    source: str = ""
    github_repo: str = ""
    tag_prefix: str = ""
    formula: str = ""
    cask: str = ""
    tap: str = ""
    url: str = ""
    version_path: str = ""
    module: str = ""
    fossil_repo: str = ""
    project_name: str = ""
    version_separator: str = ""
    timeline_tag: str = ""
    stable_qualifiers: list[str] = []


class AdditionalCheck(msgspec.Struct, frozen=True, kw_only=True):
    """`[[verify.additional]]`: must exit 0 and print the pattern."""

    command: str = ""
    pattern: str = ""


class Verify(msgspec.Struct, frozen=True, kw_only=True):
    """`[verify]`: the check of an installation. Patterns are literal substrings of its output."""

    command: str = ""
    pattern: str = ""
    patterns: list[str] | None = None
    mode: str = ""
    reason: str = ""
    exit_code: int | None = None
    version_format: str = ""
    additional: list[AdditionalCheck] = []

    @property
    def expected_exit(self) -> int:
        """The exit status that the command must end with."""
        return self.exit_code or 0

    def literals(self) -> tuple[str, ...]:
        """Every pattern that must occur; `patterns` wins over `pattern`, empty ones say nothing."""
        found = self.patterns or [self.pattern]
        return tuple(pattern for pattern in found if pattern)


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """`[[patches]]`: exactly one of url and data."""

    url: str = ""
    data: str = ""
    checksum: str = ""
    strip: int = 0
    subdir: str = ""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """`[[resources]]`: a further artefact of a build."""

    name: str = ""
    url: str = ""
    checksum: str = ""
    dest: str = ""


class When(msgspec.Struct, frozen=True, kw_only=True):
    """A step's `when` clause after the lenient reading: lists are tuples, empty means absent."""

    platform: tuple[str, ...] = ()
    os: tuple[str, ...] = ()
    arch: str = ""
    linux_family: str = ""
    libc: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ()
    package_manager: str = ""

    def matches(self, target: Target) -> bool:
        """Whether the clause holds on `target`.

        `platform` decides alone; off Linux `libc` is not consulted; `package_manager` never
        excludes (it is only a remark in the registry's recipes).
        """
        if self.platform:
            return f"{target.os}/{target.arch}" in self.platform
        if self.os and target.os not in self.os:
            return False
        if self.arch and self.arch != target.arch:
            return False
        if self.linux_family and self.linux_family != target.family:
            return False
        if self.libc and target.os == "linux" and target.libc not in self.libc:
            return False
        return not self.gpu or target.gpu in self.gpu


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[steps]]` entry. A key that is not reserved is a parameter; `index` counts from 1."""

    action: str
    index: int
    when: When | None = None
    params: dict[str, Any] = {}
    dependencies: tuple[str, ...] | None = None
    phase: str = ""
    note: str = ""
    description: str = ""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe file. `path` is empty for text that has no file."""

    metadata: Metadata
    steps: tuple[Step, ...]
    version: VersionSource = VersionSource()
    verify: Verify | None = None
    patches: tuple[Patch, ...] = ()
    resources: tuple[Resource, ...] = ()
    path: str = ""

    @property
    def name(self) -> str:
        """metadata.name"""
        return self.metadata.name
