"""Which snapshotter is used here: the first one that passes its trial.

The answer holds for one boot, kernel, id map and file system, and is kept in the store.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.findings import Finding
from pytest_sandbox.oci.lifetimes import boot_id
from pytest_sandbox.oci.snapshots.base import ALL, NAMES, find_snapshotter
from pytest_sandbox.oci.snapshots.trial import TrialFailed
from pytest_sandbox.oci.store.files import read_json, write_json

if TYPE_CHECKING:
    from pytest_sandbox.oci.snapshots.base import Snapshotter
    from pytest_sandbox.oci.store import Store

FILE: Final = "snapshotter.json"
_FORMAT: Final = 1
_JOBS: Final = "pytest_sandbox.oci.snapshots.trial"
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one trial ended; `failed` is empty if it passed, `problem` a stable id where known."""

    name: str
    failed: str = ""
    problem: str = ""
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The snapshotter of a store and the trials that led to it."""

    name: str
    attempts: tuple[Attempt, ...]

    @property
    def snapshotter(self) -> Snapshotter:
        """The chosen one."""
        return find_snapshotter(self.name)

    @property
    def reason(self) -> str:
        """Why this one, in one line."""
        failed = [f"{one.name}: {one.failed}" for one in self.attempts if one.failed]
        return "; ".join(failed) if failed else "tried and works"

    def findings(self) -> list[Finding]:
        """The same for doctor. A failed trial is no fatal finding: something else is used."""
        ids = {"overlay": "no-overlay", "fuse-overlayfs": "no-fuse"}
        found = [
            Finding(
                one.problem or ids.get(one.name, f"no-{one.name}"),
                False,
                f"{one.name} does not work here: {one.failed}",
                one.next_step or _NEXT.get(one.name, ""),
            )
            for one in self.attempts
            if one.failed
        ]
        return [Finding("snapshotter", True, f"{self.name}: {self.reason}"), *found]


_NEXT: Final = {
    "overlay": "use Linux 5.11 or newer, with the store on ext4, XFS or btrfs (inside a container: "
    "on a volume)",
    "fuse-overlayfs": "apt-get install fuse-overlayfs, and make /dev/fuse usable",
    "reflink": "keep the store on btrfs or XFS",
}


def choose(store: Store, wanted: str = "auto", *, fresh: bool = False) -> Choice:
    """The snapshotter of `store`: `wanted`, or the first of NAMES that works.

    `fresh` tries again, whatever was found before. Raises TrialFailed, UsageError.
    """
    kept = None if fresh else kept_choice(store, wanted)
    if kept is not None:
        return kept
    key = _key(store, wanted)
    if wanted != "auto":
        find_snapshotter(wanted)
    attempts: list[Attempt] = []
    for name in NAMES if wanted == "auto" else (wanted,):
        attempt = try_out(store, name)
        attempts.append(attempt)
        if not attempt.failed:
            choice = Choice(name, tuple(attempts))
            shown = [asdict(one) for one in attempts]
            write_json(store.root / FILE, {"key": key, "name": name, "attempts": shown})
            return choice
    last = attempts[-1]
    msg = "no root file system can be made: " + Choice("", tuple(attempts)).reason
    step = last.next_step or _NEXT.get(last.name, "")
    raise TrialFailed(msg, problem=last.problem, next_step=step)


def kept_choice(store: Store, wanted: str = "auto") -> Choice | None:
    """The choice that was made before, if it still holds."""
    kept = read_json(store.root / FILE)
    if kept is None or kept.get("key") != _key(store, wanted) or kept.get("name") not in ALL:
        return None
    return Choice(kept["name"], tuple(Attempt(**one) for one in kept["attempts"]))


def try_out(store: Store, name: str) -> Attempt:
    """The trial of one snapshotter, on the file system of the store."""
    snapshotter = find_snapshotter(name)
    with store.work() as work:
        place = work.folder / "trial"
        place.mkdir()
        place.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(place, *store.caller.ids.root)
        descriptor = os.open(place, _FOLDER)
        try:
            return _try_out(store, snapshotter, descriptor)
        finally:
            store.caller.call(f"{_JOBS}:clean", {}, [descriptor], where="host")
            os.close(descriptor)
            place.rmdir()


def _try_out(store: Store, snapshotter: Snapshotter, place: int) -> Attempt:
    name = snapshotter.name
    try:
        whole = not snapshotter.layered
        store.caller.call(f"{_JOBS}:build", {"whole": whole}, [place])
        store.caller.call(f"{_JOBS}:prepare", {"name": name}, [place])
    except SandboxError as wrong:
        return Attempt(name, wrong.what, next_step=wrong.next_step)
    except OSError as wrong:
        return Attempt(name, wrong.strerror or str(wrong))
    answer: dict[str, Any] = store.caller.call(
        f"{_JOBS}:attempt", {"name": name}, [place], where="host"
    )
    return Attempt(name, answer["failed"], answer["problem"], answer["next_step"])


def _key(store: Store, wanted: str) -> dict[str, Any]:
    program = shutil.which("fuse-overlayfs")
    return {
        "format": _FORMAT,
        "wanted": wanted,
        "boot": boot_id(),
        "kernel": os.uname().release,
        "ids": store.caller.ids.key(),
        "device": store.root.stat().st_dev,
        "mount": os.statvfs(store.root).f_flag,
        "fuse": Path(program).stat().st_mtime_ns if program else 0,
    }
