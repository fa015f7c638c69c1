"""Images that are made here: from layers of the store, with archives and manifest made when asked.

A snapshot costs a rename; its archive is only written when the image is exported or pushed, and is
the same each time (see layers/diff.py).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage
from pytest_sandbox.oci.descriptors import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    parse_descriptor,
)
from pytest_sandbox.oci.digests import digest_of
from pytest_sandbox.oci.images import Image, ImageLayer
from pytest_sandbox.oci.platforms import normalise
from pytest_sandbox.oci.store import open_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.store import Store, Work

_JOBS: Final = "pytest_sandbox.oci.unpacking_jobs"


def put_image(
    store: Store,
    reference: Reference,
    platform: Platform,
    config: Mapping[str, Any],
    layers: Sequence[ImageLayer | str],
) -> Image:
    """Record an image of layers that are in the store; a str is the key of one made here.

    `config` is an image config without rootfs (image-spec, config.md); `history`, where it is
    given, has one entry that is no empty layer for each layer. Raises ImageUnavailable where a
    layer is not there, InvalidImage for a history that does not fit.
    """
    found = [ImageLayer(layer) if isinstance(layer, str) else layer for layer in layers]
    history = config.get("history")
    if history is not None:
        filled = sum(not entry.get("empty_layer") for entry in history)
        if filled != len(found):
            msg = f"{reference.familiar} has {len(found)} layers, its history tells of {filled}"
            raise InvalidImage(msg, blame=Blame.HOST)
    document = {name: value for name, value in config.items() if name != "rootfs"}
    document |= {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        document["variant"] = platform.variant
    stored = []
    for number, layer in enumerate(found):
        there = store.layers.need(layer.key)
        found[number] = replace(
            layer, diff_id=layer.diff_id or there.diff_id, blob=layer.blob or _blob_of(there.blob)
        )
        stored.append(there)
    raw = json.dumps(document).encode()
    now = time.time()
    with store.work() as work:
        work.protect(blobs=[digest_of(raw)])
        return store.record(
            Image(
                reference=reference,
                platform=normalise(platform),
                digest="",
                index="",
                config=document,
                raw=raw,
                config_digest=store.blobs.put(raw),
                layers=tuple(found),
                size=sum(layer.bytes for layer in stored),
                stored=now,
                last_use=now,
            )
        )


def complete(store: Store, image: Image, *, pack: str = "gzip") -> Image:
    """The image with all archives, diff ids, config and manifest, which are made if they are not.

    `pack` ("gzip" or "zstd") is how layers are packed that are not yet. The record is renewed.
    Raises ImageUnavailable where the archive of a pulled layer was not kept.
    """
    if image.digest and all(_is_kept(store, layer) for layer in image.layers):
        return image
    with store.work() as work:
        work.protect(layers=image.keys)
        if image.digest:  # its digest says which archives it has: no others will do
            lost = next(layer for layer in image.layers if not _is_kept(store, layer))
            raise _not_kept(image, lost)
        layers = tuple(_pack(store, work, image, layer, pack) for layer in image.layers)
        config = dict(image.config)
        config["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
        raw = image.raw if config == image.config else json.dumps(config).encode()
        blobs = [layer.blob.document() for layer in layers if layer.blob is not None]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": Descriptor(OCI_CONFIG, digest_of(raw), len(raw)).document(),
                "layers": blobs,
            }
        ).encode()
        work.protect(blobs=[digest_of(raw), digest_of(manifest)])
        digest = store.blobs.put(manifest)
        whole = replace(
            image,
            digest=digest,
            index=digest,
            config=config,
            raw=raw,
            config_digest=store.blobs.put(raw),
            layers=layers,
        )
        store.record(whole)
    return whole


def _pack(store: Store, work: Work, image: Image, layer: ImageLayer, pack: str) -> ImageLayer:
    """The layer with its diff id and a packed archive that is in the store."""
    there = store.layers.need(layer.key)
    blob = layer.blob or _blob_of(there.blob)
    if blob is not None and blob.media_type != OCI_LAYER and store.blobs.has(blob.digest):
        return replace(layer, blob=blob, diff_id=layer.diff_id or there.diff_id)
    file = work.folder / f"packed-{layer.key}"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if blob is not None and store.blobs.has(blob.digest):
            made = _repack(store, blob, descriptor, pack)
        elif there.chain_id:
            raise _not_kept(image, layer)
        else:
            tree = open_folder(there.diff)
            try:
                args = {"overlay": True, "pack": pack}
                made = store.caller.call(f"{_JOBS}:diff", args, [tree, descriptor])
            finally:
                os.close(tree)
    finally:
        os.close(descriptor)
    wanted = layer.diff_id or there.diff_id
    if wanted and made["diff_id"] != wanted:
        msg = f"the layer {layer.key} is no longer what it was: {made['diff_id']}, not {wanted}"
        raise InvalidImage(msg, blame=Blame.HOST, next_step="make the image again")
    blob = Descriptor(f"{OCI_LAYER}+{pack}", made["digest"], made["packed"])
    work.protect(blobs=[blob.digest])
    if not store.blobs.has(blob.digest, blob.size):
        file.chmod(0o400)
        file.rename(store.blobs.path(blob.digest))
    if not there.chain_id:
        store.layers.note(there, diff_id=made["diff_id"], blob=blob.document())
    return replace(layer, diff_id=made["diff_id"], blob=blob)


def _repack(store: Store, blob: Descriptor, descriptor: int, pack: str) -> dict[str, Any]:
    """Pack the plain tar of an imported layer."""
    from pytest_sandbox.oci.layers.pack import Packer

    packer = Packer(descriptor, pack)
    for block in store.blobs.blocks(blob.digest):
        packer.put(block)
    return packer.finish()._asdict()


def _is_kept(store: Store, layer: ImageLayer) -> bool:
    return layer.blob is not None and store.blobs.has(layer.blob.digest, layer.blob.size)


def _blob_of(found: Mapping[str, Any] | None) -> Descriptor | None:
    return parse_descriptor(found, where="layer.json") if found else None


def _not_kept(image: Image, layer: ImageLayer) -> ImageUnavailable:
    number = image.layers.index(layer) + 1
    msg = f"the archive of layer {number} of {image.reference.familiar} is not in the store"
    step = f"pytest-sandbox image pull --pull=always {image.reference.familiar}"
    return ImageUnavailable(msg, blame=Blame.HOST, next_step=step)
