"""Snapshots: the files that a sandbox changed become a layer, and an image of its own."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.images import ImageLayer
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.store import Layer
from pytest_sandbox.runtimes.oci import images, leavings
from pytest_sandbox.runtimes.owner import LABEL, owner_labels
from pytest_sandbox.runtimes.reaper import SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pytest_sandbox.runtimes.oci.container import OciContainer
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

SNAPSHOTS: Final = "tsuku/sandbox-snapshot"
_COPY: Final = "pytest_sandbox.runtimes.oci.file_jobs:copy"
_UNMAKE: Final = "pytest_sandbox.runtimes.oci.file_jobs:unmake"
_SWITCH: Final = "pytest_sandbox.runtimes.oci.switching:switch"


def take(
    runtime: OciRuntime,
    container: OciContainer,
    name: str | None,
    labels: Mapping[str, str],
    ours: Collection[int],
) -> str:
    """A snapshot of a running sandbox; its name. `ours` are its pids inside that write no files.

    With no other process in it, the sandbox goes on with a new upper folder, and the old one is
    the layer: nothing is copied. Else it is stopped while its changes are copied (as reflinks
    where the file system can).
    """
    store = runtime.store
    key = f"snap-{secrets.token_hex(16)}"
    parent = container.layers[-1].parent.name
    with store.work() as work:
        work.protect(layers=[key])
        if not (container.is_quiet(ours) and _switch(runtime, container, key, parent)):
            folder = store.layers.begin(work.folder, key)
            with container.freeze():
                _copy(runtime, container, folder / "diff")
            store.layers.publish(folder, Layer(key, folder, parent=parent))
        keys = [layer.parent.name for layer in container.layers]
        keys = keys if keys[-1] == key else [*keys, key]
        return record(runtime, container, tuple(keys), name, labels)


def _switch(runtime: OciRuntime, container: OciContainer, key: str, parent: str) -> bool:
    """Make the upper folder a layer and give the sandbox a new one; False where that fails."""
    store, order = runtime.store, container.order
    number = len(container.layers)
    upper = Path(order.folder, container.upper)
    # Noted before it is there: no sweep takes it.
    keys = [*(layer.parent.name for layer in container.layers), key]
    store.use_layers(container.id, keys)
    args = {
        "id": container.id,
        "pid": container.pid,
        "layers": [str(layer) for layer in (*container.layers, upper)],
        "folder": order.folder,
        "upper": f"upper{number}",
        "work": f"work{number}",
        "snapshotter": order.snapshotter,
        "owner": [order.uids[0][1], order.gids[0][1]],
    }
    try:
        done = runtime.supervisor.call(_SWITCH, args, where="host")
    except (OSError, SandboxError):
        return False
    _unmake(runtime, upper, container.created)
    layer = store.adopt_layer(upper, parent, key)
    container.grow(layer.diff, f"upper{number}", done["created"])
    return True


def _unmake(runtime: OciRuntime, upper: Path, created: Sequence[str]) -> None:
    """What was made for mounts is no change of the sandbox."""
    if created:
        descriptor = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            runtime.supervisor.call(_UNMAKE, {"created": list(created)}, [descriptor])
        finally:
            os.close(descriptor)


def _copy(runtime: OciRuntime, container: OciContainer, diff: Path) -> None:
    upper = Path(container.order.folder, container.upper)
    source = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    target = os.open(diff, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        args = {"created": list(container.created)}
        runtime.supervisor.call(_COPY, args, [source, target])
    finally:
        os.close(source)
        os.close(target)


def record(
    runtime: OciRuntime,
    container: OciContainer,
    keys: tuple[str, ...],
    name: str | None,
    labels: Mapping[str, str],
) -> str:
    """Record the layers as an image of a snapshot."""
    found = leavings.owner_of(runtime.store.root, container.id)
    whose = owner_labels(*found) if found else {LABEL: "1"}
    whose |= {SNAPSHOT: "1", f"{LABEL}.created": f"{time.time():.3f}"}
    if name:
        whose |= {SNAPSHOT: "kept", f"{LABEL}.run": ""}
    config = images.relabelled(container.order.config, {**whose, **labels})
    title = name or f"{SNAPSHOTS}:{secrets.token_hex(8)}"
    layers = tuple(ImageLayer(key, runtime.store.layer(key).diff_id) for key in keys)
    arch = str(container.order.config.get("architecture", ""))
    images.record(runtime.store, parse_reference(title), arch, config, layers)
    return title
