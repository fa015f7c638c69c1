"""Versions of engines: what is too old, what hangs, what lacks a security fix."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_FINAL: Final = 1 << 30
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]?rc\.?(\d+))?")


class Version(NamedTuple):
    """Three numbers; `candidate` is the number of a release candidate, else very high."""

    major: int
    minor: int
    patch: int = 0
    candidate: int = _FINAL

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        return text if self.candidate == _FINAL else f"{text}-rc.{self.candidate}"


def parse_version(text: str) -> Version | None:
    """The first version in a text, such as `1.1.5+ds1-1+deb12u1`, `1.4.0-rc.3` or `1.8`."""
    match = _VERSION.search(text)
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return Version(
        int(major), int(minor), int(patch or 0), _FINAL if candidate is None else int(candidate)
    )


OLDEST: Final = {"runc": Version(1, 1), "crun": Version(1, 5)}
"""Older ones are not tried: their features and their errors differ."""

_HANGS: Final = (
    # runc issue 5208: SIGCHLD is lost when a container's process ends at once.
    (Version(1, 3, 0, 0), Version(1, 3, 6)),
    (Version(1, 4, 0, 0), Version(1, 4, 2)),
)
_FIXES: Final = {
    # CVE: the first fixed version of each branch; newer branches have it, older ones do not.
    "CVE-2024-21626": (Version(1, 1, 12),),
    "CVE-2025-31133": (Version(1, 2, 8), Version(1, 3, 3), Version(1, 4, 0, 3)),
    "CVE-2025-52565": (Version(1, 2, 8), Version(1, 3, 3), Version(1, 4, 0, 3)),
    "CVE-2025-52881": (Version(1, 2, 8), Version(1, 3, 3), Version(1, 4, 0, 3)),
    "CVE-2026-41579": (Version(1, 3, 6), Version(1, 4, 3), Version(1, 5, 0, 3)),
}


def hangs(name: str, version: Version) -> bool:
    """Can this engine hang when a container's process ends at once?"""
    return name == "runc" and any(first <= version < fixed for first, fixed in _HANGS)


def open_holes(name: str, version: Version, backported: Iterable[str] = ()) -> list[str]:
    """The CVEs whose fix this version lacks, but for those that a distribution has backported."""
    if name != "runc":
        return []
    fixed = set(backported)
    return [cve for cve, fixes in _FIXES.items() if cve not in fixed and not _has(version, fixes)]


def _has(version: Version, fixes: tuple[Version, ...]) -> bool:
    branch = [fix for fix in fixes if fix[:2] == version[:2]]
    return version >= (branch[0] if branch else fixes[-1])
