"""One packed layer into its place in the making: the client's side of unpacking_jobs."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import InvalidImage, SandboxError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.store import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.store import Store

_JOBS: Final = "pytest_sandbox.oci.unpacking_jobs"


class OtherSnapshotter(Exception):
    """Mounting failed, and another snapshotter was found: layers have to be unpacked for that."""


def apply_packed(
    store: Store,
    stream: int,
    pending: Path,
    lowers: Sequence[str],
    *,
    name: str,
    diff_id: str,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> dict[str, Any]:
    """Unpack a layer that comes from a descriptor into `pending`/diff (see Layers.begin).

    `lowers` are the keys of the layers below it, lowest first. Gives what layers.jobs.apply gives.
    Raises InvalidImage, SandboxError, OtherSnapshotter.
    """
    args: dict[str, Any] = {"layer": name, "diff_id": diff_id, "bounds": bounds._asdict()}
    if not lowers:
        with _opened(pending / "diff") as fds:
            args["first"] = True
            return store.caller.call(f"{_JOBS}:apply_first", args, [stream, *fds])
    args["snapshotter"] = store.snapshotter.name
    if not store.snapshotter.layered:
        below = open_folder(store.layers.folder(lowers[-1]) / "diff")
        try:
            with _opened(pending / "diff") as fds:
                return store.caller.call(f"{_JOBS}:apply_full", args, [stream, below, *fds])
        finally:
            os.close(below)
    args["lowers"] = _names(lowers)
    beside = pending.with_name(f"{pending.name}.overlay")
    beside.mkdir(mode=0o700)
    with _opened(store.root / "layers", pending / "diff", beside) as fds, _mounting(store):
        return store.caller.call(f"{_JOBS}:apply_over", args, [stream, *fds], where="host")


def apply_ahead(
    store: Store,
    stream: int,
    pending: Path,
    *,
    name: str,
    diff_id: str,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> dict[str, Any]:
    """The same before the layers below are there: gives `pending` for `settle_ahead`, or `redo`.

    For layered snapshotters only. Raises InvalidImage, SandboxError.
    """
    args = {"layer": name, "diff_id": diff_id, "bounds": bounds._asdict()}
    with _opened(pending / "diff") as fds:
        return store.caller.call(f"{_JOBS}:ahead", args, [stream, *fds])


def settle_ahead(
    store: Store, pending: Path, lowers: Sequence[str], work: Mapping[str, Any]
) -> bool:
    """Complete what went ahead from the layers below; whether it has to be done anew instead.

    Raises SandboxError, OtherSnapshotter.
    """
    args = {
        "lowers": _names(lowers),
        "snapshotter": store.snapshotter.name,
        "pending": dict(work),
    }
    with _opened(store.root / "layers", pending / "diff") as fds, _mounting(store):
        return bool(store.caller.call(f"{_JOBS}:settle", args, fds, where="host")["redo"])


@contextlib.contextmanager
def _opened(*folders: Path) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        found = []
        for folder in folders:
            found.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(os.close, found[-1])
        yield found


@contextlib.contextmanager
def _mounting(store: Store) -> Iterator[None]:
    """Where a mount fails, another snapshotter may do."""
    try:
        yield
    except InvalidImage:
        raise
    except (OSError, SandboxError):
        if store.try_snapshotters():
            raise OtherSnapshotter from None
        raise


def _names(keys: Sequence[str]) -> list[str]:
    return [f"{key}/diff" for key in keys]


def warm_up(store: Store) -> None:
    """Start the supervisor and have it load what unpacking needs, without waiting for it."""

    def call() -> None:
        with contextlib.suppress(Exception):  # the first layer tells what is wrong
            store.caller.call(f"{_JOBS}:ready", {})

    threading.Thread(target=call, name="sandbox-warm-up", daemon=True).start()
