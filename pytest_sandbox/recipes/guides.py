"""Reading an old install_guide: which packages its texts name, and what is left for a person."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_sandbox.recipes.grammar import GrammarError, check_package
from pytest_sandbox.recipes.known_commands import KNOWN_COMMANDS
from pytest_sandbox.targets import ARCHES, FAMILIES, FAMILY_MANAGERS, MANAGERS

if TYPE_CHECKING:
    from collections.abc import Mapping

_INSTALL: Final = {
    "apt": ("apt", ("install",)),
    "apt-get": ("apt", ("install",)),
    "dnf": ("dnf", ("install",)),
    "yum": ("dnf", ("install",)),
    "pacman": ("pacman", ("-S", "-Sy", "-Syu")),
    "apk": ("apk", ("add",)),
    "zypper": ("zypper", ("install", "in")),
    "brew": ("brew", ("install",)),
}
_CASK: Final = re.compile(r"--cask\b|\bcask\b")


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What an install_guide comes to. `packages` and `casks` are for package managers; `manual` are
    texts for a person, each with the `when` clause that it holds for (empty: everywhere)."""

    packages: dict[str, list[str]] = {}
    casks: list[str] = []
    manual: list[tuple[str, dict[str, Any]]] = []


def advise(command: str, guide: object, have: Mapping[str, Any]) -> Advice:
    """Packages for every family that is known, and the guide's texts for the others.

    `have` are packages that the step already lists. What a guide's own command line installs comes
    before the table of known commands. A text stays as `manual` where no package answers for it.
    """
    texts = _texts(guide)
    named = _named(texts)
    packages: dict[str, list[str]] = {}
    known = KNOWN_COMMANDS.get(command, {})
    for manager in (*MANAGERS, "brew"):
        if manager in have:
            continue
        if manager == "brew" and "darwin" in texts and "brew" not in named:
            continue  # the guide knows better: a cask, or a text for a person
        names = named.get(manager) or list(known.get(manager, ()))
        if names:
            packages[manager] = names
    casks = named.get("cask", [])
    covered = {*packages, *have, *(["brew"] if casks else [])}
    return Advice(packages=packages, casks=casks, manual=_manual(texts, covered))


def _texts(guide: object) -> dict[str, str]:
    if isinstance(guide, dict):
        return {key: value for key, value in guide.items() if isinstance(value, str) and value}
    return {"fallback": guide} if isinstance(guide, str) and guide else {}


def _named(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Manager -> packages of texts that are nothing but one install command."""
    found: dict[str, list[str]] = {}
    for text in texts.values():
        manager, names = _command(text)
        if names:
            found.setdefault(manager, names)
    return found


def _command(text: str) -> tuple[str, list[str]]:
    """The manager (or `cask`) and the packages of `sudo apt-get install -y jq`; else nothing."""
    try:
        words = shlex.split(text.strip().strip("`"))
    except ValueError:
        return "", []
    words = [word for word in words if not word.startswith("-") or word.startswith("-S")]
    if words and words[0] == "sudo":
        words = words[1:]
    if len(words) < 3 or words[0] not in _INSTALL:
        return "", []
    manager, verbs = _INSTALL[words[0]]
    if words[1] not in verbs:
        return "", []
    names = words[2:]
    try:
        for name in names:
            check_package(manager, name)
    except GrammarError:
        return "", []
    return ("cask" if manager == "brew" and _CASK.search(text) else manager), names


def _manual(texts: Mapping[str, str], covered: set[str]) -> list[tuple[str, dict[str, Any]]]:
    """The texts that no package answers for, each with its clause."""
    missing = [family for family in FAMILIES if FAMILY_MANAGERS[family] not in covered]
    left: list[tuple[str, dict[str, Any]]] = []
    for key, text in texts.items():
        if key == "darwin":
            if "brew" not in covered:
                left.append((text, {"os": ["darwin"]}))
        elif key == "linux":
            if not _superseded(texts):
                left += _for_families(text, missing)
        elif key in FAMILIES:
            if key in missing:
                left.append((text, {"linux_family": key}))
        elif re.fullmatch(rf"(?:linux|darwin)/(?:{'|'.join(ARCHES)})", key):
            manager_there = "brew" in covered if key.startswith("darwin") else not missing
            if not manager_there:
                left.append((text, {"platform": [key]}))
        else:  # fallback, or a word that nothing understood
            if "linux" not in texts or _superseded(texts):
                left += _for_families(text, missing)
            if "darwin" not in texts and "brew" not in covered:
                left.append((text, {"os": ["darwin"]}))
    return left


def _superseded(texts: Mapping[str, str]) -> bool:
    """Whether the linux text is one manager's command, and a fallback speaks to all the others."""
    return "fallback" in texts and bool(_command(texts.get("linux", ""))[1])


def _for_families(text: str, missing: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if len(missing) == len(FAMILIES):
        return [(text, {"os": ["linux"]})]
    return [(text, {"linux_family": family}) for family in missing]
