"""Snapshots: the files that a sandbox changed become a layer, and an image of its own."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.images import ImageLayer
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.store import Layer
from pytest_sandbox.runtimes.oci import images, leavings
from pytest_sandbox.runtimes.owner import LABEL, owner_labels
from pytest_sandbox.runtimes.reaper import SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtimes.oci.container import OciContainer
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

SNAPSHOTS: Final = "tsuku/sandbox-snapshot"
_COPY: Final = "pytest_sandbox.runtimes.oci.file_jobs:copy"


def take(
    runtime: OciRuntime, container: OciContainer, name: str | None, labels: Mapping[str, str]
) -> str:
    """A snapshot of a running sandbox; its name.

    The sandbox is stopped while its changes are copied (as reflinks where the file system can).
    """
    store = runtime.store
    keys = tuple(Path(layer).parent.name for layer in container.order.layers)
    key = f"snap-{secrets.token_hex(16)}"
    with store.work() as work:
        folder = store.layers.begin(work.folder, key)
        with container.freeze():
            source = os.open(
                Path(container.order.folder, "upper"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
            target = os.open(folder / "diff", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                store.caller.call(_COPY, {"created": container.created}, [source, target])
            finally:
                os.close(source)
                os.close(target)
        store.layers.publish(folder, Layer(key, folder, parent=keys[-1]))
        return record(runtime, container, (*keys, key), name, labels)


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
