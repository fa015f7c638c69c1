"""Which images stand on which: what several of them have in common is installed once.

Pure arithmetic on what sets of packages consist of. A set may stand on another one only where it
consists of all of that and more, so that it ends as if it had been installed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    Parts = frozenset[str]

STAGE: Final = 1.0
"""Seconds that each build takes, whatever it installs: a start, and the manager's thinking."""
PART: Final = 0.05
"""Seconds that an archive takes, whatever is in it."""
SPEED: Final = 15e6
"""Bytes of archives that are unpacked in a second."""
MOST: Final = 200
"""So many sets are compared pair by pair; what is beyond stands on the base."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One build. `key` is that of a wanted set, or empty for what several have in common; `parts`
    is all that is installed when it is done; `upon` is the number of the stage below, -1 for the
    base.
    """

    key: str
    parts: frozenset[str]
    upon: int = -1


def plan(
    wanted: Mapping[str, Mapping[str, int]],
    refused: Collection[frozenset[str]] = (),
    *,
    common: bool = True,
) -> list[Stage]:
    """The builds that make all of `wanted` (key -> archive -> bytes), each after the one below it.

    What is `refused` is no stage of its own (it cannot be installed as it is); without `common`,
    only wanted sets are.
    """
    sizes = {part: size for parts in wanted.values() for part, size in parts.items()}
    sets = {key: frozenset(parts) for key, parts in wanted.items()}
    chosen = dict(list(sets.items())[:MOST])
    stages = list(_Planner(sizes, frozenset(refused), common=common).stages(chosen))
    return stages + [Stage(key, parts) for key, parts in sets.items() if key not in chosen]


def rotated(stages: list[Stage], by: int, of: int) -> list[Stage]:
    """The same builds in another order, so that `of` processes begin with different ones."""
    above: dict[int, list[int]] = {}
    for number, stage in enumerate(stages):
        above.setdefault(stage.upon, []).append(number)
    found: list[Stage] = []

    def emit(old: int, new: int) -> None:
        numbers = above.get(old, [])
        shift = len(numbers) * by // of if of else 0
        for number in numbers[shift:] + numbers[:shift]:
            found.append(Stage(stages[number].key, stages[number].parts, new))
            emit(number, len(found) - 1)

    emit(-1, -1)
    return found


class _Planner:
    def __init__(
        self, sizes: Mapping[str, int], refused: frozenset[Parts], *, common: bool
    ) -> None:
        self._sizes = sizes
        self._refused = refused
        self._common = common
        self._count = 0

    def seconds(self, parts: Collection[str]) -> float:
        """What it takes to install these, about."""
        return sum(PART + self._sizes[part] / SPEED for part in parts)

    def stages(
        self, sets: Mapping[str, Parts], below: Parts = frozenset(), upon: int = -1
    ) -> Iterator[Stage]:
        """The builds of `sets` on a stage where `below` is installed."""
        left = dict(sets)
        while len(left) > 1 and (common := self._best(left, below)) is not None:
            above = {key: parts for key, parts in left.items() if parts >= common}
            own = next((key for key, parts in above.items() if parts == common), "")
            above.pop(own, None)
            yield self._next(Stage(own, common, upon))
            number = self._count - 1
            yield from self.stages(above, common, number)
            left = {key: p for key, p in left.items() if key not in above and key != own}
        for key, parts in left.items():
            yield self._next(Stage(key, parts, upon))

    def _next(self, stage: Stage) -> Stage:
        self._count += 1
        return stage

    def _best(self, sets: Mapping[str, Parts], below: Parts) -> Parts | None:
        """What is worth most to be installed once: by the seconds that are saved."""
        distinct = sorted(set(sets.values()), key=lambda parts: (len(parts), sorted(parts)))
        candidates = {*distinct, *(one & other for one, other in combinations(distinct, 2))}
        best, most = None, 0.0
        for common in sorted(candidates, key=lambda parts: (len(parts), sorted(parts))):
            own = common in sets.values()
            if common <= below or not (own or (self._common and common not in self._refused)):
                continue
            users = sum(parts >= common for parts in sets.values())
            saved = (users - 1) * self.seconds(common - below)
            saved -= 0.0 if own else STAGE
            if users > 1 and saved > most:
                best, most = common, saved
        return best
