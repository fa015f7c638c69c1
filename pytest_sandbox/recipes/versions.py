"""Comparing a version that was found with the least one that a recipe wants."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Final

_LEADING: Final = re.compile(r"\d+")


def at_least(detected: str, minimum: str) -> bool:
    """Whether `detected` is `minimum` or newer, as the registry compares.

    A leading `v` is dropped and both are split at dots; each component of `minimum` is compared by
    its leading integer, or as text where one of the two has none. What `detected` has beyond that
    does not count, a component that it lacks fails: "1" is less than "1.0".
    """
    have = detected.strip().removeprefix("v").split(".")
    want = minimum.strip().removeprefix("v").split(".")
    for found, wanted in zip_longest(have[: len(want)], want):
        if found is None:
            return False
        left, right = _LEADING.match(found), _LEADING.match(wanted)
        if left and right:
            if int(left[0]) != int(right[0]):
                return int(left[0]) > int(right[0])
        elif found != wanted:
            return found > wanted
    return True
