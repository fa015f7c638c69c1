"""The registry's 58 actions: what each needs, where it may run, and what it takes.

The facts are the registry's own action table; parameters are those its actions read.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_sandbox.recipes.model import (
    Metadata,
    Patch,
    Resource,
    Verify,
    VersionSource,
    When,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.targets import Target

MAPPINGS: Final = ("os_mapping", "arch_mapping")
"""Parameters that replace `{os}` and `{arch}` for one step."""

IGNORED_PARAMS: Final = ("fallback", "unless_command")
"""Parameters that system actions accept and that have no effect in a sandbox."""

COMMON_PARAMS: Final = ("extra_dependencies",)
"""Parameters that every action accepts."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One action.

    `os` and `family` are the built-in platform (empty: none), `manager` the package manager that it
    speaks for. `network`, `composite` (expands into others when a plan is made), `primitive` and
    `deterministic` are the registry's flags; `system` marks the actions that describe the system.
    `phase` is `install` or `post-install`. Of each group in `required` at least one parameter must
    be there; `optional` ends the list of what the action reads, and `open` says that the list is
    not known. `dependencies` are recipes that a step needs by itself (`linux_`: on Linux only).
    """

    name: str
    os: str = ""
    family: str = ""
    manager: str = ""
    network: bool = False
    composite: bool = False
    primitive: bool = False
    deterministic: bool = False
    system: bool = False
    phase: str = "install"
    required: tuple[tuple[str, ...], ...] = ()
    optional: tuple[str, ...] = ()
    open: bool = False
    dependencies: tuple[str, ...] = ()
    linux_dependencies: tuple[str, ...] = ()

    @property
    def params(self) -> frozenset[str]:
        """Every parameter that the action reads."""
        wanted = [name for group in self.required for name in group]
        return frozenset((*wanted, *self.optional, *COMMON_PARAMS))

    def runs_on(self, target: Target) -> bool:
        """Whether the built-in platform accepts the target."""
        if not self.os:
            return True
        return self.os == target.os and (not self.family or self.family == target.family)


def _action(
    name: str,
    flags: str,
    params: str = "",
    *,
    platform: str = "",
    needs: str = "",
    linux_needs: str = "",
    phase: str = "install",
) -> Action:
    """One row: flags are N(etwork) C(omposite) P(rimitive) D(eterministic) S(ystem); in `params` a
    `?` ends an optional name, `|` joins alternatives, and `*` says that more are allowed."""
    words = params.split()
    os_name, _, rest = platform.partition("/")
    family, _, manager = rest.partition("/")
    optional = [word[:-1] for word in words if word.endswith("?")]
    if "S" in flags:
        optional += IGNORED_PARAMS
    return Action(
        name=name,
        os=os_name,
        family=family,
        manager=manager,
        network="N" in flags,
        composite="C" in flags,
        primitive="P" in flags,
        deterministic="D" in flags,
        system="S" in flags,
        phase=phase,
        required=tuple(tuple(word.split("|")) for word in words if word[-1] not in "?*"),
        optional=tuple(optional),
        open="*" in words,
        dependencies=tuple(needs.split()),
        linux_dependencies=tuple(linux_needs.split()),
    )


_MAP = "os_mapping? arch_mapping?"
_SIGNED = "signature_url? signature_key_url? signature_key_fingerprint?"
_BUILD = "source_dir executables?"
_NATIVE = "make zig pkg-config"

_ROWS: Final = (
    # the system: package managers, repositories, groups, services
    _action("apt_install", "NS", "packages", platform="linux/debian/apt"),
    _action(
        "apt_repo",
        "NS",
        "url key_url key_sha256 suite? components?",
        platform="linux/debian/apt",
    ),
    _action("apt_ppa", "NS", "ppa", platform="linux/debian/apt"),
    _action("dnf_install", "NS", "packages", platform="linux/rhel/dnf"),
    _action("dnf_repo", "NS", "url key_url key_sha256 gpgkey?", platform="linux/rhel/dnf"),
    _action("pacman_install", "NS", "packages", platform="linux/arch/pacman"),
    _action("apk_install", "NS", "packages", platform="linux/alpine/apk"),
    _action("zypper_install", "NS", "packages", platform="linux/suse/zypper"),
    _action("brew_install", "NS", "packages tap?", platform="darwin//brew"),
    _action("brew_cask", "NS", "packages tap?", platform="darwin//brew"),
    _action("require_command", "DS", "command min_version? version_flag? version_regex?"),
    _action(
        "require_system",
        "D",
        "command min_version? version_flag? version_regex? packages? primitives? install_guide?",
    ),
    _action("group_add", "DS", "group"),
    _action("service_enable", "DS", "service"),
    _action("service_start", "DS", "service"),
    _action("manual", "DS", "text"),
    # files
    _action(
        "download",
        "CD",
        f"url dest? checksum_url? checksum_algo? fallback_urls? skip_verification_reason? "
        f"{_SIGNED} {_MAP}",
    ),
    _action(
        "download_file",
        "NPD",
        f"url checksum dest? checksum_algo? size? fallback_urls? {_MAP}",
    ),
    _action(
        "download_archive",
        "CD",
        "url archive_format? strip_dirs? install_mode? binaries? executables? checksum_url? "
        f"fallback_urls? {_SIGNED} {_MAP}",
    ),
    _action(
        "github_archive",
        "CD",
        "repo asset_pattern binaries? executables? archive_format? strip_dirs? install_mode? "
        f"checksum_url? checksum_asset? {_MAP}",
    ),
    _action("github_file", "CD", f"repo asset_pattern binary|binaries checksum_url? {_MAP}"),
    _action("fossil_archive", "CD", "repo project_name tag_prefix? version_separator? strip_dirs?"),
    _action("extract", "PD", f"archive format dest? strip_dirs? files? {_MAP}"),
    _action("chmod", "PD", "files mode?"),
    _action("install_binaries", "PD", "outputs|binaries install_mode? executables?"),
    _action("install_libraries", "PD", "patterns"),
    _action("link_dependencies", "PD", "library version?"),
    _action("set_rpath", "PD", "binaries rpath? create_wrapper?"),
    _action("run_command", "N", "command working_dir? requires_sudo?"),
    _action("set_env", "PD", "vars", phase="post-install"),
    _action("install_shell_init", "D", "source_file|source_command target shells?"),
    _action("install_completions", "D", "source_file|source_command target shells?"),
    _action("install_program_files", "D", "files", phase="post-install"),
    _action("apply_patch", "CD", "url|data sha256? checksum? strip? subdir?"),
    _action("apply_patch_file", "PD", "file|data strip? subdir?"),
    _action("text_replace", "PD", "file pattern replacement? regex?"),
    _action("app_bundle", "D", "url checksum app_name binaries?"),
    # other package systems
    _action("homebrew", "NCD", "formula", linux_needs="patchelf"),
    _action("homebrew_relocate", "PD", "formula? *", linux_needs="patchelf"),
    _action("npm_install", "NC", "package executables", needs="nodejs"),
    _action("npm_exec", "NP", "*", needs="nodejs"),
    _action("pipx_install", "NC", "package executables *", needs="python-standalone"),
    _action("pip_exec", "NP", "*", needs="python-standalone"),
    _action("pip_install", "NP", "*", needs="python"),
    _action("cargo_install", "NC", "crate executables *", needs="rust"),
    _action("cargo_build", "NP", "*", needs="rust"),
    _action("gem_install", "NC", "gem executables *", needs="ruby"),
    _action("gem_exec", "NP", "*", needs="ruby"),
    _action("install_gem_direct", "NP", "*", needs="ruby"),
    _action("go_install", "NC", "module executables *", needs="go"),
    _action("go_build", "NP", "*", needs="go"),
    _action(
        "cpan_install",
        "NP",
        "distribution executables module? perl_version? cpanfile? mirror? mirror_only? offline?",
        needs="perl",
    ),
    _action("nix_install", "NC", "package executables", needs="nix-portable"),
    _action("nix_realize", "NP", "*", needs="nix-portable"),
    # builds from source
    _action("setup_build_env", "PD"),
    _action(
        "configure_make",
        "P",
        f"{_BUILD} configure_args? make_targets? make_args? prefix? skip_configure?",
        needs=_NATIVE,
    ),
    _action("cmake_build", "P", f"{_BUILD} cmake_args? build_type?", needs=f"cmake {_NATIVE}"),
    _action(
        "meson_build",
        "P",
        f"{_BUILD} meson_args? buildtype? wrap_mode?",
        needs="meson ninja zig",
        linux_needs="patchelf",
    ),
)

ACTIONS: Final[Mapping[str, Action]] = MappingProxyType({row.name: row for row in _ROWS})
"""Name -> action. Any other name in a recipe is an error."""

PRIMITIVES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "apt": "apt_install",
        "dnf": "dnf_install",
        "pacman": "pacman_install",
        "apk": "apk_install",
        "zypper": "zypper_install",
        "brew": "brew_install",
        **{
            name: name
            for name in (
                "apt_repo",
                "apt_ppa",
                "dnf_repo",
                "group_add",
                "service_enable",
                "service_start",
                "require_command",
                "manual",
            )
        },
    }
)
"""What `primitives` of a require_system step may name -> the action that it means."""

INSTALL_ACTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {manager: f"{manager}_install" for manager in ("apt", "dnf", "pacman", "apk", "zypper", "brew")}
)
"""Package manager -> the action that installs with it."""

METADATA_KEYS: Final = frozenset(Metadata.__struct_fields__)
VERSION_KEYS: Final = frozenset(VersionSource.__struct_fields__)
VERIFY_KEYS: Final = frozenset(Verify.__struct_fields__)
PATCH_KEYS: Final = frozenset(Patch.__struct_fields__)
RESOURCE_KEYS: Final = frozenset(Resource.__struct_fields__)
WHEN_KEYS: Final = frozenset(When.__struct_fields__)
STEP_KEYS: Final = frozenset({"action", "when", "dependencies", "phase", "note", "description"})
TABLES: Final = frozenset({"metadata", "version", "steps", "verify", "patches", "resources"})
"""The keys that the format knows; the rest of a recipe is ignored (and lint says so)."""
