"""What killed supervisors left: cgroups, files, records. Mounts and processes go by themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.oci.store.owners import owner_of
from pytest_sandbox.oci.supervisor.rooms import sweep_rooms
from pytest_sandbox.runtimes.oci import first_process
from pytest_sandbox.runtimes.oci.containers.folder import remove_folder, write_end
from pytest_sandbox.runtimes.oci.containers.record import Ending

if TYPE_CHECKING:
    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.runtimes.oci.containers.folder import Container, Containers


def reap(containers: Containers, store: Store) -> int:
    """Clear away what is left of sandboxes that were killed with their supervisor; how many.

    Of a detached one without `--rm` the record stays, with status 137.
    """
    lost = [one for one in containers.all() if one.end is None and one.status == "lost"]
    for one in lost:
        _clear(one, store)
    for folder in containers.half_made():
        shutil.rmtree(folder, ignore_errors=True)
    if lost:
        store.empty_trash()
    sweep_rooms()
    return len(lost)


def _clear(one: Container, store: Store) -> None:
    record = one.record
    with contextlib.suppress(OSError):  # without an init nothing else ends it
        if record.pid and owner_of(record.pid).started == record.pid_started:
            os.kill(record.pid, signal.SIGKILL)
    first_process.kill_left(store.root / "sandboxes" / record.id)
    if not record.rootless:
        from pytest_sandbox.oci import cgroups

        paths = cgroups.find_cgroups().below(record.cgroups_base).paths(record.id)
        if paths.exists():
            cgroups.kill(paths)
            cgroups.remove(paths)
    with contextlib.suppress(OSError):
        source = store.root / "sandboxes" / record.id
        source.rename(store.trash / f"sandbox-{record.id}.{os.urandom(6).hex()}")
    store.release(record.id)
    if record.room:
        with contextlib.suppress(OSError):
            Path(record.room).rmdir()
    if record.detached and not record.remove:
        write_end(one.folder, Ending(137, time.time(), "lost"))
    else:
        remove_folder(one.folder)
