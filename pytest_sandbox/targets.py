"""Target: the system that a recipe is installed on, as `os/arch/family`."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FAMILIES: Final = ("debian", "rhel", "arch", "alpine", "suse")
ARCHES: Final = ("amd64", "arm64")
MANAGERS: Final[Mapping[str, str]] = {
    "apt": "debian",
    "dnf": "rhel",
    "pacman": "arch",
    "apk": "alpine",
    "zypper": "suse",
}
"""Package manager -> family."""

FAMILY_MANAGERS: Final[Mapping[str, str]] = {
    family: manager for manager, family in MANAGERS.items()
}

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

# ID and ID_LIKE words of os-release(5); case matters there.
_DISTRIBUTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("debian", "ubuntu", "linuxmint", "pop", "elementary", "zorin"), "debian"),
    **dict.fromkeys(("fedora", "rhel", "centos", "rocky", "almalinux", "ol"), "rhel"),
    **dict.fromkeys(("arch", "manjaro", "endeavouros"), "arch"),
    "alpine": "alpine",
    **dict.fromkeys(("opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles"), "suse"),
}


def libc_of(os_name: str, family: str) -> str:
    """The C library of a family: musl on alpine, glibc elsewhere on Linux, none elsewhere."""
    if os_name != "linux":
        return ""
    return "musl" if family == "alpine" else "glibc"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One system: `os` linux or darwin, `arch` amd64 or arm64, `family` (empty off Linux or when
    unknown).
    """

    os: str
    arch: str
    family: str = ""
    gpu: str = "none"

    @property
    def libc(self) -> str:
        """glibc, musl, or empty off Linux."""
        return libc_of(self.os, self.family)

    @property
    def id(self) -> str:
        """The part of a node id between the brackets: `debian-amd64`."""
        return f"{self.family or self.os}-{self.arch}"

    def __str__(self) -> str:
        return f"{self.os}/{self.arch}/{self.family}" if self.family else f"{self.os}/{self.arch}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `linux/amd64/debian` or `darwin/arm64`. Raises UsageError that names the part at
        fault.
        """
        parts = text.strip().split("/")
        if len(parts) not in {2, 3} or not all(parts):
            msg = f"{text!r} is no target"
            raise UsageError(msg, next_step="write os/arch/family, like linux/amd64/debian")
        os_name, arch, family = (*parts, "")[:3]
        _known(text, "os", os_name, ("linux", "darwin"))
        _known(text, "architecture", arch, ARCHES)
        if os_name == "linux":
            _known(text, "family", family, FAMILIES)
        elif family:
            msg = f"target {text!r}: {os_name} has no Linux family"
            raise UsageError(msg, next_step=f"write {os_name}/{arch}")
        return cls(os_name, arch, family)


def _known(text: str, what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"target {text!r}: unknown {what} {value!r}"
        raise UsageError(msg, next_step=f"use one of {', '.join(allowed)}")


LINUX_TARGETS: Final = tuple(
    Target("linux", arch, family) for arch in ARCHES for family in FAMILIES
)
ALL_TARGETS: Final = (*LINUX_TARGETS, Target("darwin", "amd64"), Target("darwin", "arm64"))


def match_targets(patterns: Iterable[str], among: Iterable[Target] = LINUX_TARGETS) -> list[Target]:
    """The targets that the globs (`linux/*/alpine`) name, in the order of `among`, each once.

    A bare family (`alpine`), architecture (`arm64`) or id (`alpine-arm64`) is understood too.
    Raises UsageError for a pattern that names nothing.
    """
    among = tuple(among)
    chosen: set[Target] = set()
    for pattern in patterns:
        text = pattern.strip()
        found = {
            target
            for target in among
            if fnmatchcase(str(target), text)
            or text in {target.family, target.id}
            or (text == target.arch)
        }
        if not found:
            if not any(ch in text for ch in "*?[") and "/" in text:
                Target.parse(text)  # names the part at fault
            msg = f"target {pattern!r} names none of the known targets"
            raise UsageError(
                msg, next_step="write os/arch/family, globs allowed, like linux/*/alpine"
            )
        chosen |= found
    return [target for target in among if target in chosen]


def on_this_arch(patterns: Iterable[str]) -> list[str]:
    """The patterns of a command line or a setting, where a bare family (`alpine`) asks for this
    machine's architecture alone.
    """
    arch = host_arch()
    words = [pattern.strip() for pattern in patterns]
    return [f"linux/{arch}/{word}" if word in FAMILIES else word for word in words]


def family_of(identifier: str, id_like: Iterable[str] = ()) -> str:
    """The family of a distribution by its ID, then by each ID_LIKE word; raises UsageError for an
    unknown one.
    """
    for word in (identifier, *id_like):
        if word in _DISTRIBUTIONS:
            return _DISTRIBUTIONS[word]
    msg = f"unknown distribution {identifier!r}"
    raise UsageError(
        msg, next_step=f"name the family yourself: {', '.join(FAMILIES)}", blame=Blame.UNSUPPORTED
    )


def family_from_os_release(text: str) -> str:
    """The family by the text of an os-release file; UsageError for an unknown distribution."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, sep, value = line.strip().partition("=")
        if sep and not key.startswith("#"):
            values[key] = value.strip().strip("\"'")
    return family_of(values.get("ID", ""), values.get("ID_LIKE", "").split())


@lru_cache(maxsize=1)
def host_arch() -> str:
    """The host's architecture in Go's words, or the machine's own word where there is none."""
    machine = platform.machine()
    return _MACHINES.get(machine, machine)


def arch_from_machine(machine: str) -> str:
    """amd64 for x86_64, arm64 for aarch64; other words stay."""
    return _MACHINES.get(machine, machine)


def host_family(path: str = "/etc/os-release") -> str:
    """The family of this machine, or empty where it cannot be told."""
    try:
        return family_from_os_release(Path(path).read_text(encoding="utf-8"))
    except (OSError, UsageError):
        return ""


def host_target() -> Target:
    """The target that this machine is."""
    os_name = os.uname().sysname.lower()
    return Target(os_name, host_arch(), host_family() if os_name == "linux" else "")
