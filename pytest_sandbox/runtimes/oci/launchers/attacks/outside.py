"""What an attack is, and what one knows of the world outside of its sandbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Outside(NamedTuple):
    """What only the outside has: a sandbox that finds it has reached out.

    `marks` are bytes that stand in the launcher's memory, environment or arguments alone. `ports`
    are TCP ports that listen on the machine's loopback, `sockets` names of its abstract sockets.
    `kept` are descriptors of whoever runs the attacks: they are not the sandbox's.
    """

    marks: tuple[bytes, ...] = ()
    ports: tuple[int, ...] = ()
    sockets: tuple[str, ...] = ()
    kept: frozenset[int] = frozenset()


class Attack(NamedTuple):
    """One attempt. `run` gives None if it was refused or led nowhere, else what was possible.

    `what` says in a few words what is tried; `machines` are those that it can be tried on (all of
    them if it is empty), as uname(2) calls them.
    """

    name: str
    what: str
    run: Callable[[Outside], str | None]
    machines: tuple[str, ...] = ()

    def applies(self) -> bool:
        """Whether it can be tried on this machine."""
        return not self.machines or os.uname().machine in self.machines
