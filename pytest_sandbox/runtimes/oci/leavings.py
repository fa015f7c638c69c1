"""Whose sandboxes are, and what dead owners left of them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import cgroups
from pytest_sandbox.oci.supervisor.rooms import sweep_rooms
from pytest_sandbox.runtimes.base import Owner
from pytest_sandbox.runtimes.oci import first_process
from pytest_sandbox.runtimes.oci.launchers.direct.group_names import sweep_groups
from pytest_sandbox.runtimes.owner import owner_from_labels
from pytest_sandbox.runtimes.reaper import SNAPSHOT
from pytest_sandbox.runtimes.run_folder import reap_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

_FOLDER: Final = "owners"
_REMOVE: Final = "pytest_sandbox.runtimes.oci.file_jobs:remove"


def note(root: Path, name: str, owner: Owner) -> None:
    """Write down whose sandbox `name` is, before anything of it is made."""
    data = json.dumps({**_fields(owner), "created": time.time()}).encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    path = f"{root}/{_FOLDER}/{name}"
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        (root / _FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=8)
def _fields(owner: Owner) -> dict[str, Any]:
    return asdict(owner)


def forget(root: Path, name: str) -> None:
    """Nothing of it is left."""
    (root / _FOLDER / name).unlink(missing_ok=True)


def forget_failed(root: Path, name: str) -> None:
    """A start that failed: forget it, unless something of it is left (its supervisor was killed,
    or has not cleared it away yet). Then the note stays for who clears it away.
    """
    if not (root / "sandboxes" / name).exists():
        forget(root, name)
        (root / "uses" / f"{name}.json").unlink(missing_ok=True)


def owner_of(root: Path, name: str) -> tuple[Owner, float] | None:
    """Whose a sandbox is, and since when (POSIX time)."""
    try:
        data: dict[str, Any] = json.loads((root / _FOLDER / name).read_text(encoding="utf-8"))
        created = float(data.pop("created"))
        return Owner(**data), created
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sandboxes(root: Path) -> Iterator[tuple[str, Owner, float]]:
    """Every sandbox that is written down: its name, its owner, since when."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(root / _FOLDER)):  # noqa: PTH208
            found = owner_of(root, entry)
            if found is not None:
                yield entry, *found


def sweep(runtime: OciRuntime, run: str) -> int:
    """Remove what a run has left; the number of things removed."""
    return _collect(runtime, lambda owner, _created: owner.run == run)


def reap(runtime: OciRuntime, is_dead: Callable[[Owner, float], bool]) -> int:
    """Remove what dead owners left; the number of things removed."""
    count = _collect(runtime, is_dead) + reap_folders(is_dead) + sweep_rooms()
    if runtime.machine.access.usable:
        sweep_groups(runtime.machine.access.cgroups)
    store = runtime.store
    store.sweep_dead_work()
    store.empty_trash(keep=store.uses.living()[0])
    return count


def _collect(runtime: OciRuntime, goes: Callable[[Owner, float], bool]) -> int:
    count = 0
    for name, owner, created in sandboxes(runtime.store.root):
        if goes(owner, created):
            if not runtime.close_one(name):
                clear(runtime, name)
            count += 1
    gone = []
    for image in runtime.store.images():
        known = image.labels
        found = owner_from_labels(known)
        if SNAPSHOT in known and known[SNAPSHOT] != "kept" and found and goes(*found):
            gone.append(image)
    if gone:
        runtime.store.collect(older_than=0.0, images=gone)
    return count + len(gone)


def clear(runtime: OciRuntime, name: str) -> None:
    """Remove everything of a sandbox whose owner is gone: its mounts went with the supervisor."""
    folder = runtime.store.root / "sandboxes"
    first_process.kill_left(folder / name)
    paths = runtime.machine.access.cgroups.paths(name)
    if paths.exists():
        cgroups.kill(paths)
        cgroups.remove(paths)
    if (folder / name).exists():
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            runtime.supervisor.call(_REMOVE, {"name": name}, [descriptor], where="host")
        finally:
            os.close(descriptor)
    runtime.store.release(name)
    forget(runtime.store.root, name)
