"""What is to be started: everything a launch job needs, as plain data.

Named tuples: a short command pays for every class that is made.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERPRETED: Final = "interpreted"
Ranges = tuple[tuple[int, int, int], ...]


class MountOrder(NamedTuple):
    """A folder or file of the host at `target`. `own`: ours, as it is; else one of the caller's,
    whose files are to belong to the sandbox's root.
    """

    source: str
    target: str
    read_only: bool = True
    own: bool = False


class LimitOrder(NamedTuple):
    """The limits to set; None for none. `weak` says that the cgroup cannot, and processes are
    limited by other means (see weak.py).
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    nofile: int | None = None
    weak: tuple[str, ...] = ()


class Order(NamedTuple):
    """One sandbox. Paths are the host's.

    `layers` are the store's layer folders, the lowest first; `folder` is the sandbox's own in the
    store (its upper and work folders are made there). `config` is the image's config document.
    """

    id: str
    engine: str
    init: str
    snapshotter: str
    layers: tuple[str, ...]
    folder: str
    config: dict[str, Any]
    uids: Ranges
    gids: Ranges
    argv: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    cwd: str = ""
    tty: bool = False
    hostname: str = ""
    network: str = "none"
    ports: tuple[str, ...] = ()
    mounts: tuple[MountOrder, ...] = ()
    tmpfs: Mapping[str, int] = MappingProxyType({})
    read_only: bool = False
    no_new_privileges: bool = False
    stop_signal: str = ""
    limits: LimitOrder = LimitOrder()
    cgroups_base: str = ""
    rootless: bool = False
    hold: bool = False
    """The main process is the control shell, or the hold program in an image without one."""
    check: bool = False
    """Look for the command before the start: 126 and 127 are no errors of the engine."""
    notes: tuple[str, ...] = ()
    """Files that say whose the sandbox is and what it uses: removed when nothing of it is left."""
    keep: bool = False
    """Its folder stays when it has ended: somebody wants its upper folder."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of its terminal."""
    record: str = ""
    """The folder of its record (see containers/): its end is told there."""
    remove: bool = False
    """The record goes at the end, too."""
    launcher: str = "engine"
    """`direct` for our own launcher (INTERPRETED: the same with a Python as process 1); else
    `engine` is asked.
    """
    kind: str = ""
    """Orders of one kind (not empty) differ in `id`, `folder` and `notes` alone."""
    filters: str = ""
    """Where that keeps compiled filters."""
    upper: str = ""
    """An upper folder that is there already: the sandbox goes on where it ended."""

    def document(self) -> dict[str, Any]:
        """As JSON carries it."""
        return {
            **self._asdict(),
            "mounts": [mount._asdict() for mount in self.mounts],
            "limits": self.limits._asdict(),
            "tmpfs": dict(self.tmpfs),
        }

    def short(self) -> dict[str, Any]:
        """As JSON carries it to who knows the kind."""
        return {"kind": self.kind, "id": self.id, "folder": self.folder, "notes": self.notes}

    def digest(self) -> str:
        """What all orders of its kind have in common, as a hash."""
        import hashlib  # heavy; who starts sandboxes needs none

        plain = self._replace(id="", folder="", notes=(), kind="").document()
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, document: dict[str, Any]) -> Order:
        """The opposite of `document`."""
        fields = dict(document)
        fields["mounts"] = tuple(MountOrder(**entry) for entry in fields["mounts"])
        limits = fields["limits"]
        fields["limits"] = LimitOrder(**{**limits, "weak": tuple(limits["weak"])})
        if fields["entrypoint"] is not None:
            fields["entrypoint"] = tuple(fields["entrypoint"])
        for name in ("uids", "gids"):
            fields[name] = tuple(tuple(entry) for entry in fields[name])
        for name in ("layers", "argv", "env", "ports", "notes", "size"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
