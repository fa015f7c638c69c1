"""What a probe found, and how a lacking tool is installed."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from pytest_sandbox.errors import RuntimeUnavailable

_PACKAGES: Final = {
    # tool: family -> package; a tool that is not here has its own name in every family
    "newuidmap": {
        "debian": "uidmap",
        "rhel": "shadow-utils",
        "arch": "shadow",
        "alpine": "shadow-uidmap",
        "suse": "shadow",
    },
    "tini": {"rhel": "tini-static", "alpine": "tini-static"},
    "pasta": dict.fromkeys(("debian", "rhel", "arch", "alpine", "suse"), "passt"),
}
_MANAGERS: Final = {
    "debian": "apt-get install",
    "rhel": "dnf install",
    "arch": "pacman -S",
    "alpine": "apk add",
    "suse": "zypper install",
}
_FAMILIES: Final = {
    "ubuntu": "debian",
    "fedora": "rhel",
    "centos": "rhel",
    "opensuse": "suse",
    "sles": "suse",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. `id` is stable: it names the diagnosis where `ok` is false, and
    the subject where it is true. `fatal`: sandboxes cannot work with it; else something weaker
    is used, or it is a warning.
    """

    id: str
    ok: bool
    what: str
    next_step: str = ""
    fatal: bool = False


class Lacking(RuntimeUnavailable):
    """Something that sandboxes need is not there; `problem` is the stable id of the diagnosis."""

    def __init__(self, what: str, *, problem: str, next_step: str) -> None:
        super().__init__(what, next_step=next_step)
        self.problem = problem

    @property
    def finding(self) -> Finding:
        """The same as a finding."""
        return Finding(self.problem, False, self.what, self.next_step, fatal=True)


def install(tool: str, release: Path = Path("/etc/os-release")) -> str:
    """The command that installs `tool` on this distribution; a general text on unknown ones."""
    family = _family(release)
    package = _PACKAGES.get(tool, {}).get(family, tool)
    if family not in _MANAGERS:
        return f"install {package}"
    return f"{_MANAGERS[family]} {package}"


@cache
def _family(release: Path) -> str:
    """os-release(5): ID, then ID_LIKE."""
    values: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in release.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            values[key] = " ".join(shlex.split(value))
    for name in f"{values.get('ID', '')} {values.get('ID_LIKE', '')}".split():
        family = _FAMILIES.get(name, _FAMILIES.get(name.partition("-")[0], name))
        if family in _MANAGERS:
            return family
    return ""
