"""How many tests are still to come that ask for the same system: the most that is worth starting
ahead.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from pytest_sandbox.pool import Ahead

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

_ENOUGH: int = 64
"""More than a pool ever holds: nobody counts further."""
_MARKS = ("sandbox", "requires_system")


class Demand:
    """Of the collected items, looked at as far as is needed. `workers` share them."""

    def __init__(self, items: Sequence[pytest.Item], workers: int) -> None:
        self._items = items
        self._workers = workers
        self._places = {item: place for place, item in enumerate(items)}
        self._looked = 0
        self._coming: dict[str, list[int]] = {}
        self._others: list[int] = []
        self._kinds: dict[tuple[int, ...], str] = {}

    def after(self, item: pytest.Item, following: pytest.Item | None, *, plain: bool) -> Ahead:
        """What comes after a request of this item. `following` is the next item of this process,
        None for the last; a `plain` request is what the `sandbox` fixture makes of the item's
        marks, any other may come again from this item and from all that use the factory.
        """
        if plain and "sandbox" in _names(item):
            if following is None:
                return Ahead(0, sure=True)
            kind = self._kind(item)
            found = self._count(self._coming.setdefault(kind, []), item)
            if not found and "sandbox" in _names(following) and self._kind(following) == kind:
                found = 1
            return Ahead(found, sure=True)
        found = 0 if following is None else self._count(self._others, item)
        return Ahead(found + 1, sure=False)

    def _count(self, places: list[int], item: pytest.Item) -> int:
        """This process's part of those that lie behind the item."""
        here = self._places.get(item, -1)
        enough = _ENOUGH * self._workers
        while len(places) - bisect_right(places, here) < enough and self._looked < len(self._items):
            self._look()
        found = len(places) - bisect_right(places, here)
        return -(-found // self._workers)

    def _look(self) -> None:
        place = self._looked
        item = self._items[place]
        self._looked += 1
        names = _names(item)
        if "sandbox" in names:
            self._coming.setdefault(self._kind(item), []).append(place)
        if "installed" in names or ("sandbox_factory" in names and "sandbox" not in names):
            self._others.append(place)

    def _kind(self, item: pytest.Item) -> str:
        """The same text for items whose marks say the same."""
        marks = [mark for name in _MARKS for mark in item.iter_markers(name)]
        key = tuple(map(id, marks))
        if key not in self._kinds:
            self._kinds[key] = repr([(mark.name, mark.args, mark.kwargs) for mark in marks])
        return self._kinds[key]


def _names(item: Any) -> Sequence[str]:
    return getattr(item, "fixturenames", ())
