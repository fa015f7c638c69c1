"""Recipes by name: the folders that dependencies are looked up in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.errors import RecipeError
from pytest_sandbox.recipes.load import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_sandbox.recipes.model import Recipe

_RESERVED = "aliases"
"""This key of `satisfies` names several recipes and is no answer to one name."""


class Catalogue:
    """Looks recipes up by name in folders; the first folder wins, and its first file.

    A recipe whose own name is asked for comes before one that only `satisfies` it. Files are read
    when they are needed; one that cannot be read answers to nothing. `load` may cache.
    """

    def __init__(
        self,
        folders: Iterable[str | Path] = (),
        *,
        load: Callable[[Path], Recipe] = load_recipe,
    ) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._load = load
        self._found: dict[str, Recipe | None] = {}
        self._own: dict[str, Recipe] = {}
        self._loaded: dict[Path, Recipe | None] = {}
        self._files: list[Path] | None = None
        self._texts: dict[Path, str] = {}

    def add(self, recipe: Recipe) -> None:
        """Make a recipe that is loaded already known; the first of a name wins."""
        self._own.setdefault(recipe.name, recipe)
        if recipe.path:
            self._loaded.setdefault(Path(recipe.path), recipe)
        if self._found.get(recipe.name) is None:
            self._found.pop(recipe.name, None)

    def find(self, name: str) -> Recipe | None:
        """The recipe that answers to `name`, or None."""
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def files(self) -> list[Path]:
        """Every recipe file of the folders, in the order of the lookup."""
        if self._files is None:
            self._files = [
                path for folder in self.folders for path in sorted(folder.rglob("*.toml"))
            ]
        return self._files

    def _search(self, name: str) -> Recipe | None:
        if name in self._own:
            return self._own[name]
        # Nearly every recipe lies in a file of its own name; only then look into all of them.
        for path in self.files():
            if path.stem == name and (recipe := self._read(path)) and recipe.name == name:
                return recipe
        candidates = [recipe for recipe in self._own.values() if _answers(recipe, name)]
        for path in self.files():
            if name in self._text(path) and (recipe := self._read(path)):
                if recipe.name == name:
                    return recipe
                if _answers(recipe, name):
                    candidates.append(recipe)
        return candidates[0] if candidates else None

    def _text(self, path: Path) -> str:
        if path not in self._texts:
            try:
                self._texts[path] = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                self._texts[path] = ""
        return self._texts[path]

    def _read(self, path: Path) -> Recipe | None:
        if path not in self._loaded:
            try:
                self._loaded[path] = self._load(path)
            except (RecipeError, OSError):
                self._loaded[path] = None
        return self._loaded[path]


def _answers(recipe: Recipe, name: str) -> bool:
    return any(
        name in names for key, names in recipe.metadata.satisfies.items() if key != _RESERVED
    )
