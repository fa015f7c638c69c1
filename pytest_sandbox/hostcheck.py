"""`requires_system` on a test without a sandbox: does this machine have it?"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from pytest_sandbox.recipes.params import strings_of, text_of
from pytest_sandbox.recipes.select import steps_for
from pytest_sandbox.recipes.versions import at_least
from pytest_sandbox.recipes.vocabulary import INSTALL_ACTIONS
from pytest_sandbox.targets import FAMILY_MANAGERS, host_target

if TYPE_CHECKING:
    from pytest_sandbox.recipes.model import Recipe
    from pytest_sandbox.recipes.require_system import RequireSystem
    from pytest_sandbox.targets import Target

_INSTALL = {
    "apt": "apt-get install",
    "dnf": "dnf install",
    "pacman": "pacman -S",
    "apk": "apk add",
    "zypper": "zypper install",
    "brew": "brew install",
}
_SOURCES = {"apt_repo": "url", "apt_ppa": "ppa", "dnf_repo": "url"}
"""Action -> the parameter that says which repository has the packages."""


def lacking(recipe: Recipe, target: Target | None = None) -> str:
    """Why this machine does not have what the recipe requires, with the way to get it; empty if it
    has.
    """
    from pytest_sandbox.recipes.require_system import read_require_system

    target = target or host_target()
    steps = steps_for(recipe, target)
    manual = " ".join(str(s.params.get("text", "")) for s in steps if s.action == "manual").strip()
    for step in steps:
        if step.action not in {"require_system", "require_command"}:
            continue
        required = read_require_system(step)
        wrong = _missing(required)
        if wrong:
            cure = _cure(required, target) or manual
            return f"{recipe.name}: {wrong}" + (f"; {cure}" if cure else "")
    return ""


def _missing(required: RequireSystem) -> str:
    path = shutil.which(required.command)
    if path is None:
        return f"command {required.command!r} is missing"
    if not required.min_version:
        return ""
    argv = [path, required.version_flag]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`{required.command} {required.version_flag}` failed: {error}"
    text = done.stdout.decode("utf-8", "replace")
    match = re.search(required.version_regex, text)
    if done.returncode != 0 or match is None or not match.groups():
        return f"`{required.command} {required.version_flag}` tells no version"
    if not at_least(match[1], required.min_version):
        return f"{required.command} {match[1]} found, {required.min_version} needed"
    return ""


def _cure(required: RequireSystem, target: Target) -> str:
    """How `target` gets it: the repositories to add and the packages to install, else what the
    recipe tells a person.
    """
    manager = "brew" if target.os == "darwin" else FAMILY_MANAGERS.get(target.family, "")
    sources: list[str] = []
    packages: list[str] = []
    for one in required.actions_for(target):
        if one.action == INSTALL_ACTIONS.get(manager):
            packages += strings_of(one.params, "packages")
        elif (key := _SOURCES.get(one.action)) is not None:
            sources += filter(None, [text_of(one.params, key)])
    if not packages:
        return " ".join(required.guidance.split())
    how = f"install it: {_INSTALL[manager]} {shlex.join(dict.fromkeys(packages))}"
    return f"{how} (from {', '.join(sources)})" if sources else how
