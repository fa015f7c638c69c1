"""Which files are recipes, where recipes are looked up by name, and which targets a run has."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from pytest_sandbox.targets import (
    FAMILIES,
    LINUX_TARGETS,
    Target,
    host_arch,
    match_targets,
    on_this_arch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_sandbox.settings import Settings

_LOOKS_LIKE_ONE = re.compile(rb"^\s*\[(?:metadata\]|\[steps\]\])", re.MULTILINE)
_WILD = frozenset("*?[")


def _pattern(glob: str) -> re.Pattern[str]:
    """A glob with `**` as a regular expression over posix paths."""
    parts = []
    for part in PurePath(glob).parts:
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            text = re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            parts.append(text + "/")
    return re.compile("".join(parts).removesuffix("/"))


def _root(glob: str) -> str:
    """The folder before the first wildcard: `recipes` of `recipes/**/*.toml`."""
    fixed = []
    for part in PurePath(glob).parts:
        if _WILD & set(part) or part.endswith(".toml"):
            break
        fixed.append(part)
    return str(PurePath(*fixed)) if fixed else "."


class Chooser:
    """Decides which TOML files are recipes: those that a glob names, and what looks like one below
    a folder that was named on the command line.
    """

    def __init__(self, globs: Sequence[str], rootpath: Path, *, named: bool) -> None:
        """`named` says that paths stood on the command line."""
        self._prefix = f"{rootpath.as_posix().rstrip('/')}/"
        self._patterns = [_pattern(glob) for glob in globs]
        self._any_named = named
        self._named: dict[Path, bool] = {}

    def wants(self, path: Path, is_named: Callable[[Path], bool]) -> bool:
        """Whether `path` is a recipe; `is_named` tells whether a folder was on the command line."""
        text = path.as_posix()
        if text.startswith(self._prefix):
            relative = text[len(self._prefix) :]
            if any(pattern.fullmatch(relative) for pattern in self._patterns):
                return True
        return (
            self._any_named
            and self._below_named(path.parent, is_named)
            and _looks_like_recipe(path)
        )

    def _below_named(self, folder: Path, is_named: Callable[[Path], bool]) -> bool:
        known = self._named.get(folder)
        if known is None:
            above = folder.parent
            known = is_named(folder) or (above != folder and self._below_named(above, is_named))
            self._named[folder] = known
        return known


def _looks_like_recipe(path: Path) -> bool:
    try:
        return _LOOKS_LIKE_ONE.search(path.read_bytes()) is not None
    except OSError:
        return True  # collected, and reported there


def folders(globs: Iterable[str], rootpath: Path, args: Iterable[str]) -> tuple[Path, ...]:
    """Where recipes are found by name: beside those named on the command line, then the globs'
    folders.
    """
    found: dict[Path, None] = {}
    for arg in args:
        path = Path(str(arg).split("::", 1)[0])
        if path.suffix == ".toml":
            found[path.absolute().parent] = None
    for glob in globs:
        found[rootpath / _root(glob)] = None
    for arg in args:
        path = Path(str(arg).split("::", 1)[0]).absolute()
        if path.is_dir() and path != rootpath:
            found[path] = None
    return tuple(path for path in found if path.is_dir())


def missing_folders(globs: Iterable[str], rootpath: Path, args: Iterable[str]) -> list[str]:
    """The globs' folders that no argument contains yet."""
    have = [Path(str(arg).split("::", 1)[0]).absolute() for arg in args]
    missing: dict[str, None] = {}
    for glob in globs:
        folder = (rootpath / _root(glob)).absolute()
        if folder.is_dir() and not any(folder.is_relative_to(path) for path in have):
            missing[str(folder)] = None
    return list(missing)


def targets_of(settings: Settings) -> tuple[Target, ...]:
    """The targets of a run: those that were asked for, else all families on this architecture.

    A bare family means this machine's architecture: it does not ask for another one. Raises
    UsageError for a pattern that names nothing.
    """
    if settings.target:
        return tuple(match_targets(on_this_arch(settings.target), LINUX_TARGETS))
    return tuple(Target("linux", host_arch(), family) for family in FAMILIES)
