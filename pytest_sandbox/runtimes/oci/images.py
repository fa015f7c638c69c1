"""Images of the store, as a runtime shows them."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_sandbox.images.name import HASH_LABEL
from pytest_sandbox.oci.images import Image, ImageLayer, rfc3339
from pytest_sandbox.oci.platforms import Platform, host_platform, normalise
from pytest_sandbox.oci.reference import Reference, parse_reference
from pytest_sandbox.oci.restoring import restore
from pytest_sandbox.oci.store import Layer, open_folder
from pytest_sandbox.runtimes.base import ImageInfo
from pytest_sandbox.runtimes.owner import LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.targets import Target

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DIFF: Final = "pytest_sandbox.oci.unpacking_jobs:diff"
_APPLY: Final = "pytest_sandbox.oci.layers.jobs:apply"


def stored(store: Store, reference: str, arch: str = "") -> Image | None:
    """The image of the store that `reference` names, for `arch` (this machine's where empty; any
    other one where that has none).
    """
    name = parse_reference(reference)
    wanted = platform_for(arch) if arch else host_platform()
    found = store.image(name, normalise(wanted)) or restore(store, name, normalise(wanted))
    if found is not None or arch:
        return found
    for image in store.images():
        if image.reference == name:
            return store.image(name, image.platform)
    return None


@cache
def platform_for(arch: str) -> Platform:
    """The platform of a target's architecture."""
    return normalise(Platform("linux", arch))


def find(store: Store, reference: str) -> ImageInfo | None:
    """See Runtime.find_image."""
    image = stored(store, reference)
    return None if image is None else shown(image, reference)


def shown(image: Image, name: str = "") -> ImageInfo:
    """An image as a runtime tells it."""
    return ImageInfo(
        name=name or image.reference.familiar,
        digest=image.config_digest,
        arch=image.platform.architecture,
        created=image.created,
        size=image.size,
        labels=image.labels,
    )


def ours(store: Store) -> list[ImageInfo]:
    """Every image that carries a label of ours, by name."""
    found = [
        shown(image)
        for image in store.images()
        if any(name in image.labels for name in (LABEL, HASH_LABEL, f"{LABEL}.snapshot"))
    ]
    return sorted(found, key=lambda info: info.name)


def remove(store: Store, reference: str) -> None:
    """Remove an image of every platform; its layers go as soon as nothing uses them."""
    name = parse_reference(reference)
    gone = [image for image in store.images() if image.reference == name]
    if gone:
        store.collect(older_than=0.0, images=gone)


def pull(
    store: Store,
    reference: str,
    target: Target,
    say: Callable[[str], None],
    *,
    environ: Mapping[str, str],
    settings: Settings,
) -> ImageInfo:
    """See Runtime.pull."""
    from pytest_sandbox.oci.progress import Told
    from pytest_sandbox.oci.pull import pull as pull_image
    from pytest_sandbox.runtimes.oci.registry_settings import open_registry

    with open_registry(settings, environ, say) as registry:
        say(f"pull {reference}")
        image = pull_image(
            parse_reference(reference),
            store=store,
            registry=registry,
            platform=platform_for(target.arch),
            policy="always",
            bounds=registry.bounds,
            display=Told(say),
        )
    return shown(image, reference)


def load_rootfs(
    store: Store,
    tar: IO[bytes],
    reference: str,
    target: Target,
    labels: Mapping[str, str],
    *,
    bounds: Mapping[str, int] | None = None,
) -> ImageInfo:
    """See Runtime.load_rootfs. `bounds` are those that differ from the defaults."""
    with store.work() as work:
        folder = store.layers.begin(work.folder, secrets.token_hex(16))
        reader, writer = os.pipe2(os.O_CLOEXEC)
        diff = os.open(folder / "diff", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        feeder = _Feeder(tar, writer)
        try:
            args = {"layer": reference, "bounds": dict(bounds or {})}
            found = store.caller.call(_APPLY, args, [reader, diff])
        finally:
            os.close(reader)
            os.close(diff)
            feeder.join()
        # Its archive is what the layer gives again when the image is exported, not what came.
        archive = archive_of(store, folder / "diff", bounds)
        key = archive["diff_id"].partition(":")[2]
        there = store.layers.get(key) is not None
        if not there:
            layer = Layer(
                key,
                folder,
                diff_id=archive["diff_id"],
                entries=found["entries"],
                bytes=archive["size"],
                devices=found["devices"],
            )
            store.layers.publish(folder, layer)
        config = {
            "architecture": target.arch,
            "os": target.os,
            "created": rfc3339(time.time()),
            "config": {"Cmd": ["/bin/sh"], "Env": [_PATH], "Labels": dict(labels)},
            "rootfs": {"type": "layers", "diff_ids": [archive["diff_id"]]},
            "history": [{"created": rfc3339(time.time()), "created_by": "pytest-sandbox"}],
        }
        layers = (ImageLayer(key, archive["diff_id"]),)
        image = record(store, parse_reference(reference), target.arch, config, layers)
    if there:
        store.empty_trash(keep=store.uses.living()[0])
    return shown(image, reference)


def archive_of(
    store: Store, folder: Path, bounds: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """`diff_id` and `size` of the archive that a layer makes, whose files are in `folder`."""
    tree, null = open_folder(folder), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        args = {"overlay": True, "pack": "", "bounds": dict(bounds or {})}
        return store.caller.call(_DIFF, args, [tree, null])
    finally:
        os.close(tree)
        os.close(null)


def record(
    store: Store,
    reference: Reference,
    arch: str,
    config: Mapping[str, Any],
    layers: tuple[ImageLayer, ...],
) -> Image:
    """Record an image that was made here."""
    raw = json.dumps(config, separators=(",", ":"), sort_keys=True).encode()
    now = time.time()
    return store.record(
        Image(
            reference=reference,
            platform=platform_for(arch),
            digest="",
            index="",
            config=config,
            raw=raw,
            config_digest=store.blobs.put(raw),
            layers=layers,
            size=sum(store.layers.need(layer.key).bytes for layer in layers),
            stored=now,
            last_use=now,
        )
    )


def relabelled(config: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """A copy of a config document with labels added."""
    inner = dict(config.get("config") or {})
    inner["Labels"] = {**(inner.get("Labels") or {}), **labels}
    return {**config, "created": rfc3339(time.time()), "config": inner}


class _Feeder(threading.Thread):
    """Writes a file into a pipe; a reader that went away says why itself."""

    def __init__(self, source: IO[bytes], writer: int) -> None:
        super().__init__(name="pytest-sandbox-feed", daemon=True)
        self._source = source
        self._writer = writer
        self.start()

    def run(self) -> None:
        with open(self._writer, "wb") as out:  # noqa: PTH123
            try:
                while chunk := self._source.read(1 << 20):
                    out.write(chunk)
            except BrokenPipeError:
                return


__all__ = ["find", "load_rootfs", "ours", "pull", "record", "remove", "stored"]
