"""What has to be installed before a recipe: the registry's rules, without network or versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pytest_sandbox.errors import PlanError
from pytest_sandbox.recipes.params import strings_of, text_of
from pytest_sandbox.recipes.vocabulary import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.plans.catalogue import Catalogue
    from pytest_sandbox.recipes.model import Recipe, Step
    from pytest_sandbox.targets import Target

DEEPEST: Final = 5
MOST: Final = 100
"""A plan may nest dependencies this deep and hold this many."""


class Needed(msgspec.Struct, frozen=True):
    """A recipe in the tree: the name it was `asked` for by, and the version of `name@version`."""

    recipe: Recipe
    asked: str
    pinned: str
    needs: tuple[Needed, ...] = ()


class Tree(msgspec.Struct, frozen=True):
    """What one recipe needs; `missing` are names that no recipe folder answers to."""

    needs: tuple[Needed, ...] = ()
    missing: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The recipes' names in the order of installation: children before parents, each once."""
        return tuple(needed.recipe.name for needed in flatten(self.needs))


NOTHING: Final = Tree()


def flatten(needs: tuple[Needed, ...]) -> list[Needed]:
    """Depth first, children before parents."""
    found: list[Needed] = []
    for needed in needs:
        found += flatten(needed.needs)
        found.append(needed)
    return found


def direct_dependencies(recipe: Recipe, target: Target) -> dict[str, str]:
    """The names that the recipe itself asks for, sorted -> their pinned version, or empty.

    Steps count when their `when` matches; the action's built-in platform is not consulted.
    `metadata.dependencies` replaces what the steps say, `metadata.extra_dependencies` adds to it.
    """
    metadata = recipe.metadata
    asked: set[str] = set()
    if metadata.dependencies:
        asked.update(metadata.dependencies)
    else:
        for step in recipe.steps:
            if step.when is None or step.when.matches(target):
                asked |= _of_step(step, target)
    asked.update(metadata.extra_dependencies or ())
    names: dict[str, str] = {}
    for word in sorted(asked):
        name, _, pinned = word.partition("@")
        if name and name != recipe.name:
            names[name] = names.get(name) or pinned
    return names


def _of_step(step: Step, target: Target) -> set[str]:
    found = set(strings_of(step.params, "extra_dependencies"))
    if single := text_of(step.params, "extra_dependencies"):
        found.add(single)
    if step.dependencies is not None:
        return found.union(step.dependencies)
    action = ACTIONS[step.action]
    found.update(action.dependencies)
    if target.os == "linux":
        found.update(action.linux_dependencies)
    return found


def dependency_tree(recipe: Recipe, target: Target, catalogue: Catalogue | None) -> Tree:
    """The whole tree: depth first, siblings by name; what was met before is not entered again."""
    asked = direct_dependencies(recipe, target)
    if not asked:
        return NOTHING
    missing: list[str] = []
    needs = _descend(asked, target, catalogue, {recipe.name}, missing)
    return Tree(needs, tuple(dict.fromkeys(missing)))


def _descend(
    asked: Mapping[str, str],
    target: Target,
    catalogue: Catalogue | None,
    done: set[str],
    missing: list[str],
) -> tuple[Needed, ...]:
    found = []
    for name, pinned in asked.items():
        if name in done:
            continue
        done.add(name)
        recipe = catalogue.find(name) if catalogue is not None else None
        if recipe is None:
            missing.append(name)
            continue
        if recipe.name != name:  # it only satisfies the name that was asked for
            if recipe.name in done:
                continue
            done.add(recipe.name)
        below = direct_dependencies(recipe, target)
        needs = _descend(below, target, catalogue, done, missing) if below else ()
        found.append(Needed(recipe, name, pinned, needs))
    return tuple(found)


def check_size(tool: str, depth: int, count: int) -> None:
    """Raises PlanError for a tree that is deeper or larger than plans may be."""
    if depth > DEEPEST:
        msg = f"the dependencies of {tool} are nested {depth} deep; at most {DEEPEST} are allowed"
        raise PlanError(msg, next_step="depend on fewer layers")
    if count > MOST:
        msg = f"{tool} has {count} dependencies; at most {MOST} are allowed"
        raise PlanError(msg, next_step="depend on fewer recipes")
