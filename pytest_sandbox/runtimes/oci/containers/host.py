"""What this machine gives for `run`: found and tried once a boot, kept in the store.

The trials of machine.py start half a dozen processes; a command that takes as long as them would be
slow. What they found holds for one boot, kernel, user, control group, PATH, engine and init.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.lifetimes import boot_id
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.store.files import read_json, write_json
from pytest_sandbox.oci.supervisor import Supervisor
from pytest_sandbox.runtimes.oci.order import LimitOrder, Order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.supervisor.spawn import Child

FILE: Final = "machine.json"
_FORMAT: Final = 1
_CONTROLLERS: Final = {"memory": "memory", "cpus": "cpu", "pids": "pids"}


class Found(NamedTuple):
    """What the trials found. `usable` are the controllers; `lacking` says why others are not."""

    engine: str
    init: str
    usable: tuple[str, ...]
    cgroups_base: str
    lacking: str
    next_step: str
    snapshotter: str


class Host:
    """Store, supervisor, and the means to start a sandbox."""

    def __init__(
        self,
        root: Path,
        *,
        engine: str = "",
        snapshotter: str = "auto",
        lasting: bool = False,
    ) -> None:
        """Nothing is started or tried yet. `engine` is runc, crun or a path; empty: what works."""
        self._wanted = (engine, snapshotter)
        self._root = root
        self.supervisor = Supervisor(find_ids, lasting=lasting)
        self._found = self._read()
        chosen = self._found.snapshotter if self._found else snapshotter
        self.store = Store(root, self.supervisor, chosen)

    def begin(self, spawned: Child) -> None:
        """Start the supervisor, whose process is there, behind the scenes: finding an image takes
        as long.
        """
        self.supervisor.spawned = spawned
        threading.Thread(target=self._begin, name="sandbox-host", daemon=True).start()

    def _begin(self) -> None:
        with contextlib.suppress(SandboxError, OSError):  # who needs it next is told
            self.supervisor.start()

    @property
    def found(self) -> Found:
        """Raises RuntimeUnavailable where sandboxes cannot work."""
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> Found:
        from pytest_sandbox.runtimes.oci.machine import find_machine

        engine, snapshotter = self._wanted
        machine = find_machine(
            self._root,
            engine=engine,
            snapshotter=snapshotter,
            environ=os.environ,
        )
        machine.close()
        access = machine.access
        found = Found(
            engine=str(machine.engine.path),
            init=str(machine.init.path),
            usable=tuple(sorted(access.usable)),
            cgroups_base=access.cgroups.base,
            lacking=access.what,
            next_step=access.next_step,
            snapshotter=machine.snapshotter,
        )
        key = self._key((found.engine, found.init))
        write_json(self._root / FILE, {"key": key, "found": found._asdict()})
        return found

    def _read(self) -> Found | None:
        kept = read_json(self._root / FILE)
        try:
            if kept is None:
                return None
            found = Found(**{**kept["found"], "usable": tuple(kept["found"]["usable"])})
            return found if kept["key"] == self._key((found.engine, found.init)) else None
        except (KeyError, TypeError, OSError):
            return None

    def _key(self, programs: tuple[str, ...]) -> list[Any]:
        """What it holds for. Raises OSError where a program is gone."""
        files = [os.stat(program) for program in programs]  # noqa: PTH116
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
        return [
            _FORMAT,
            boot_id(),
            os.uname().release,
            os.geteuid(),
            *self._wanted,
            self.supervisor.ids.key(),
            self._root.stat().st_dev,
            os.statvfs(self._root).f_flag,
            os.environ.get("PATH", ""),
            group,
            *([file.st_mtime_ns, file.st_size, file.st_ino] for file in files),
        ]

    def limits(self, wanted: Mapping[str, Any], *, weak: bool) -> LimitOrder:
        """The limits that were asked for. Raises SandboxError for one that cannot be set, unless
        `weak` allows other means.
        """
        asked = {name: value for name, value in wanted.items() if value is not None}
        lacking = [name for name in asked if _CONTROLLERS[name] not in self.found.usable]
        if lacking and not weak:
            options = " and ".join(f"--{name}" for name in lacking)
            controllers = " and ".join(_CONTROLLERS[name] for name in lacking)
            msg = f"{options} cannot be set (controller {controllers}): {self.found.lacking}"
            step = f"{self.found.next_step}; or allow weaker enforcement with --weak-limits"
            raise SandboxError(msg, next_step=step)
        return LimitOrder(**asked, weak=tuple(lacking))

    def order(self, image: Image, identity: str, **values: Any) -> Order:
        """An Order for one sandbox from an image of the store."""
        ids = self.supervisor.ids
        found = self.found
        return Order(
            id=identity,
            engine=found.engine,
            snapshotter=found.snapshotter,
            layers=tuple(str(self.store.layer(key).diff) for key in image.keys),
            folder=str(self.store.root / "sandboxes" / identity),
            config=dict(image.config),
            uids=tuple((r.inside, r.outside, r.size) for r in ids.uids),
            gids=tuple((r.inside, r.outside, r.size) for r in ids.gids),
            cgroups_base=found.cgroups_base,
            rootless=ids.rootless and not found.usable,
            **values,
        )

    def close(self) -> None:
        """End the supervisor (not a lasting one)."""
        self.supervisor.close()
