"""Versions as a user gives them: `NAME=VERSION`; a version becomes part of paths and URLs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_sandbox.errors import Blame, PlanError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

UNVERSIONED = "unversioned"
"""Stands in install folders where a recipe needs no version."""

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")


def check_version(version: str, tool: str) -> str:
    """The version, if it can be a part of a path. Raises PlanError."""
    if version and (not _VERSION.fullmatch(version) or ".." in version):
        msg = f"version {version!r} of {tool} is none: letters, digits and . _ + ~ - are allowed"
        raise PlanError(msg, next_step=f"--sandbox-version {tool}=VERSION")
    return version


def parse_versions(pairs: Iterable[str]) -> dict[str, str]:
    """`["jq=1.7.1"]` as a mapping. Raises UsageError for what is no NAME=VERSION."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, sep, version = pair.partition("=")
        if not sep or not name.strip() or not _VERSION.fullmatch(version.strip()):
            msg = f"{pair!r} is no NAME=VERSION"
            raise UsageError(msg, next_step="write it like jq=1.7.1")
        found[name.strip()] = version.strip()
    return found


def missing_version(tool: str, where: str) -> PlanError:
    """The error of a template that needs a version nobody gave."""
    return PlanError(
        f"{tool}: {where} uses {{version}} and no version is known",
        blame=Blame.UNSUPPORTED,
        next_step=f"--sandbox-version {tool}=VERSION",
    )
