"""Which of an upper folder's differences are the sandbox's, and not the engine's."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from pytest_sandbox.runtimes.shell import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ENGINE: Final = ("/dev", "/proc", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname")


def select(
    found: Mapping[str, Sequence[str]], created: Iterable[str], mounted: Iterable[str]
) -> dict[str, list[str]]:
    """`added`, `changed`, `removed` without the mount points and what was made for them.

    A folder that was made for a mount shows where the sandbox put something into it.
    """
    ours = {posixpath.normpath(path) for path in (*_ENGINE, FOLDER, *mounted)}
    inside = tuple(f"{path}/" for path in ours)
    made = set(created)

    def own(path: str) -> bool:
        return path.startswith(inside) or path in ours

    kept = {kind: [path for path in found[kind] if not own(path)] for kind in found}
    there = [path for path in kept["added"] if path not in made]
    kept["added"] = [
        path
        for path in kept["added"]
        if path not in made or any(other.startswith(path + "/") for other in there)
    ]
    kept["changed"] = [path for path in kept["changed"] if path not in made]
    return {kind: sorted(kept[kind]) for kind in ("added", "changed", "removed")}
