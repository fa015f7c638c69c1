"""Job of the supervisor: clear away what is left of a sandbox."""

from __future__ import annotations

import contextlib
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sandbox.oci import cgroup_usage, cgroups, linux
from pytest_sandbox.oci.supervisor.jobs import repeatable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.supervisor import Call


@repeatable
def clear(call: Call) -> dict[str, Any]:
    """After a sandbox's end: read what it used, remove what is left of it, then its files.

    Says `cleared` with its Usage as soon as nothing is left but files in the store's trash.
    """
    args = call.args
    usage = clear_away(call.room, args)
    folder = Path(args["folder"])
    aside = folder.parent.parent / "trash" / folder.name
    if not args["keep"]:
        with contextlib.suppress(OSError):
            folder.rename(aside)
    for note in args["files"]:
        Path(note).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the caller may be gone; the rest has to be done
        call.send({"cleared": usage})
    shutil.rmtree(aside, ignore_errors=True)
    if args["record"]:
        from pytest_sandbox.runtimes.oci.containers import ending

        ending.tell(Path(args["record"]), args["status"], usage, remove=args["remove"])
    return usage


def clear_away(room: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Unmount, remove the cgroup and the engine's state; the Usage of the cgroup."""
    place = Path(room, args["id"])
    usage: dict[str, Any] = {}
    if not args["rootless"] and args["group"]:  # none was made yet
        paths = found_cgroups().below(args["cgroups_base"]).paths(args["group"])
        usage = cgroup_usage.read_memory(paths)
        if cgroups.remove(paths, wait=0):  # something is in it yet
            cgroups.kill(paths)
            cgroups.remove(paths)
    if place.exists():
        for mounted in [*sorted((place / "mounts").glob("*")), place / "etc", place / "rootfs"]:
            with contextlib.suppress(OSError):
                linux.umount(mounted, linux.MNT_DETACH)
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(Path(room, "states", args["id"]), ignore_errors=True)
    return usage


@cache
def found_cgroups() -> cgroups.Cgroups:
    """What is mounted: found once for all that a supervisor starts."""
    return cgroups.find_cgroups()
