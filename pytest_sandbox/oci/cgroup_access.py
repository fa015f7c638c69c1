"""Which limits this process can really set: tried on a group with a process in it.

Nothing is concluded from a file's mode or a setting; those only explain a failure.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci import cgroups as groups
from pytest_sandbox.oci.cgroups import Cgroups, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMITS: Final = ("memory", "pids", "cpu")
"""The controllers that limits of sandboxes need."""
_TRIED: Final = {"memory": 256 << 20, "pids": 64, "cpus": 1.0}

_DELEGATE = (
    "run it as: systemd-run --user --scope -p Delegate=yes COMMAND (for cpu limits, as root: "
    "Delegate=memory pids cpu in a drop-in of user@.service)"
)
_NEXT: Final = {
    "cgroup-none": "mount control groups (systemd does), or run without limits of the kernel",
    "cgroup-v1-user": "run as root, or boot with systemd.unified_cgroup_hierarchy=1",
    "cgroup-not-delegated": _DELEGATE,
    "cgroup-readonly": "start the outer container with --privileged or --cgroupns=host and a "
    "writable /sys/fs/cgroup",
    "cgroup-busy": "move the processes of that group into a group below it (a service: "
    "DelegateSubgroup=), then try again",
    "cgroup-threaded": "run this outside of a threaded control group",
    "cgroup-no-controller": "boot with the controller on (kernel command line: "
    "cgroup_enable=memory where memory is off), or delegate it",
    "cgroup-refused": "run as root on the host, or run without limits of the kernel",
}
_BY_ERRNO: Final = {
    errno.EROFS: "cgroup-readonly",
    errno.EBUSY: "cgroup-busy",
    errno.ENOENT: "cgroup-no-controller",
    errno.EINVAL: "cgroup-no-controller",
}


@dataclass(frozen=True, slots=True)
class Access:
    """`usable` are the controllers that really work below `cgroups.base`.

    `problem` is the stable id of why others do not (empty if all do), `what` its text, `next_step`
    the remedy; `lacking` names the controllers.
    """

    cgroups: Cgroups
    usable: frozenset[str]
    lacking: tuple[str, ...] = ()
    problem: str = ""
    what: str = ""
    next_step: str = ""


def try_cgroups(found: Cgroups | None = None, wanted: Sequence[str] = LIMITS) -> Access:
    """Try to make a group, set limits in it and put a process into it, for each controller."""
    found = found or groups.find_cgroups()
    if found.layout is Layout.NONE:
        return _access(found, {}, dict.fromkeys(wanted, (errno.ENOENT, "cgroup-none")))
    if found.layout is not Layout.V2:
        failed = {one: wrong for one in wanted if (wrong := _try(found, one)) is not None}
        return _access(found, set(wanted) - set(failed), failed)
    best: Access | None = None
    for base in _bases(found):
        here = found.below(base)
        failed = {one: wrong for one in wanted if (wrong := _try(here, one)) is not None}
        access = _access(here, set(wanted) - set(failed), failed)
        if not failed:
            return access
        if best is None or len(access.usable) > len(best.usable):
            best = access
    assert best is not None
    return best


def _bases(found: Cgroups) -> Iterator[str]:
    """Where groups of v2 may be made: root's at the top, then the parents of our own, nearest
    first.
    """
    if found.base:
        yield found.base
        return
    own = PurePosixPath(found.unified.own if found.unified else "")
    above = [str(one) for one in own.parents if str(one) != "."]
    if os.geteuid() == 0 or not above:
        yield ""
    yield from above


def _try(found: Cgroups, controller: str) -> tuple[int, str] | None:
    """None if the controller works, else (errno, the id of the diagnosis)."""
    if controller not in found.controllers:
        return errno.ENOENT, "cgroup-no-controller"
    name = f"probe-{os.getpid()}-{secrets.token_hex(4)}"
    paths = found.paths(name)
    waiting = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        groups.make(found, name, [controller])
        key = "cpus" if controller == "cpu" else controller
        if key in _TRIED:
            groups.limit(paths, **{key: _TRIED[key]})  # type: ignore[arg-type]
        groups.attach(paths, waiting.pid)
        if waiting.pid not in groups.members(paths):
            return errno.EIO, "cgroup-refused"
    except OSError as wrong:
        return wrong.errno or errno.EIO, _diagnosis(found, wrong.errno or 0)
    finally:
        waiting.kill()
        waiting.communicate()
        groups.remove(paths)
        found.tidy()
    return None


def _diagnosis(found: Cgroups, number: int) -> str:
    if number in {errno.EACCES, errno.EPERM} and os.geteuid() != 0:
        return "cgroup-not-delegated" if found.layout is Layout.V2 else "cgroup-v1-user"
    if number == errno.EOPNOTSUPP or (number != errno.EROFS and _threaded(found)):
        return "cgroup-threaded"
    return _BY_ERRNO.get(number, "cgroup-refused")


def _threaded(found: Cgroups) -> bool:
    if found.unified is None or found.layout is not Layout.V2:
        return False
    with contextlib.suppress(OSError):
        kind = (found.unified.mount / found.base / "cgroup.type").read_text().strip()
        return kind != "domain"
    return False  # The top has no such file.


def _access(
    found: Cgroups, usable: set[str] | dict[str, str], failed: dict[str, tuple[int, str]]
) -> Access:
    if not failed:
        return Access(found, frozenset(usable))
    # The first one explains best: what follows often fails for the same reason.
    first = next(iter(failed))
    number, problem = failed[first]
    names = " and ".join(failed)
    if problem == "cgroup-none":
        what = "no control groups are mounted: the kernel cannot limit anything"
    else:
        where = f"/{found.base}" if found.layout is Layout.V2 else "the top"
        why = "the controller is not there" if number == errno.ENOENT else os.strerror(number)
        what = f"no limits of {names}: control groups {found.layout} at {where}: {why}"
    return Access(found, frozenset(usable), tuple(failed), problem, what, _NEXT[problem])
