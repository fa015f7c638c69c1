"""The Launcher protocol: one start of one sandbox, split in two."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_sandbox.oci.supervisor import Call


class Bundle(NamedTuple):
    """What is to be started: the runtime spec, whose root is mounted at its path, or nowhere:
    then `tree` is a descriptor of the mount.

    `texts` has what is in the files of the spec's binds that are not on the disk: source -> text.
    `known` is kept for all starts with the same spec: a launcher notes what it has found out.
    `stdio` are descriptors of stdin, stdout and stderr of the spec's process; `serve`: nothing of
    the spec's `args` runs, the sandbox waits for commands.
    """

    id: str
    place: Path
    folder: Path
    spec: dict[str, Any]
    stdio: tuple[int, ...] = ()
    serve: bool = False
    tree: int = -1
    texts: Mapping[str, str] = MappingProxyType({})
    known: dict[str, Any] | None = None
    brief: bool = False
    """The caller has had an answer to a start with the same spec: what he knows is not said."""
    user: dict[str, Any] | None = None
    """The resolved user of commands (spec.users.User as JSON)."""


class Launcher(Protocol):
    """One start. `create` makes the sandbox, which waits; `start` lets its process run."""

    brings_init: bool
    """Its first process reaps orphans and passes signals on: the spec needs no init. It takes a
    root that is mounted nowhere.
    """
    group: str
    """The name of the sandbox's cgroup, once it is created."""

    def create(self, call: Call, bundle: Bundle) -> int:
        """Make the sandbox; the pid of its first process. Raises UsageError for what the launcher
        does not implement of the spec, RuntimeUnavailable.
        """
        ...

    def start(self) -> int:
        """Let it run. 126 or 127 for a command that cannot be, else 0. Raises
        RuntimeUnavailable.
        """
        ...

    def undo(self) -> None:
        """Remove what a start that failed has left."""
        ...
