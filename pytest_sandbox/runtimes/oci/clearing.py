"""Job of the supervisor: clear away what is left of a sandbox."""

from __future__ import annotations

import contextlib
import os
import select
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import cgroup_usage, cgroups, linux
from pytest_sandbox.oci.supervisor.jobs import repeatable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.supervisor import Call

_DYING: Final = 30.0
"""So long, in seconds, the processes of a sandbox may take to go."""


@repeatable
def clear(call: Call) -> dict[str, Any]:
    """After a sandbox's end: read what it used, remove what is left of it, then its files.

    Says `cleared` with its Usage as soon as nothing is left but files in the store's trash. `fds`:
    a pidfd of its first process, where that is still dying.
    """
    args = call.args
    folder = Path(args["folder"])
    aside = folder.parent.parent / "trash" / folder.name
    if not args["keep"]:
        with contextlib.suppress(OSError):
            folder.rename(aside)  # mounts of what is in it do not mind
    paths = _groups(args)
    usage = {} if paths is None else cgroup_usage.read_memory(paths)
    for process in call.fds:
        if paths is not None and paths.unified is not None:
            _remove_empty(paths.unified)
        select.select([process], [], [], _DYING)
    _remove(call.room, args["id"], paths)
    for note in args["files"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(note)  # noqa: PTH108
    with contextlib.suppress(OSError):  # the caller may be gone; the rest has to be done
        call.send({"cleared": usage})
    discard(aside)
    if args["record"]:
        from pytest_sandbox.runtimes.oci.containers import ending

        ending.tell(Path(args["record"]), args["status"], usage, remove=args["remove"])
    return usage


def clear_away(room: str, args: Mapping[str, Any]) -> None:
    """Unmount, remove the cgroup and the engine's state."""
    _remove(room, args["id"], _groups(args))


def _groups(args: Mapping[str, Any]) -> cgroups.GroupPaths | None:
    """None where it has no cgroup, or none was made yet."""
    if args["rootless"] or not args["group"]:
        return None
    return found_cgroups().below(args["cgroups_base"]).paths(args["group"])


def _remove_empty(folder: Path) -> None:
    """Remove the groups of commands in which nothing is left."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)  # noqa: PTH106


def _remove(room: str, name: str, paths: cgroups.GroupPaths | None) -> None:
    place = Path(room, name)
    if paths is not None and cgroups.remove(paths, wait=0.005):  # something is in it yet
        cgroups.kill(paths)
        cgroups.remove(paths)
    if place.exists():
        for mounted in [*sorted((place / "mounts").glob("*")), place / "etc", place / "rootfs"]:
            with contextlib.suppress(OSError):
                linux.umount(mounted, linux.MNT_DETACH)
        discard(place)
        discard(Path(room, "states", name))


def discard(folder: Path) -> None:
    """Remove what there is of a tree; somebody else may be at it, too."""
    import shutil  # heavy; a start needs none

    shutil.rmtree(folder, ignore_errors=True)


@cache
def found_cgroups() -> cgroups.Cgroups:
    """What is mounted: found once for all that a supervisor starts."""
    return cgroups.find_cgroups()
