"""An image, from wherever it comes, into the store: layers first, its record last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.images import Image
from pytest_sandbox.oci.manifests import config_platform, diff_ids, parse_config
from pytest_sandbox.oci.platforms import normalise
from pytest_sandbox.oci.unpacking import LayerSource, unpack_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.oci.manifests import Manifest
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.store import Store


def add_image(
    store: Store,
    reference: Reference,
    config: bytes,
    sources: Sequence[LayerSource],
    *,
    manifest: Manifest | None = None,
    index: str = "",
    refetch: bool = False,
    keep_blobs: bool = True,
    bounds: Bounds = DEFAULT_BOUNDS,
    say: Callable[[str], None] = lambda _text: None,
) -> Image:
    """Unpack the layers of an image and record it under a reference.

    `config` are the verified bytes; `sources` its layers, bottom first. Without `manifest` one is
    made when the image is exported or pushed. `index` is the digest that the reference had where
    it comes from. A reference with a digest has to be that one's.
    For the others see `unpack_layers`. Raises InvalidImage, SandboxError.
    """
    parsed = parse_config(config, bounds)
    diffs = diff_ids(parsed, layers=len(sources))
    if diffs != tuple(source.diff_id for source in sources):
        msg = f"{reference.familiar}: its layers are not those that its config lists"
        raise InvalidImage(msg)
    own = "" if manifest is None else manifest.digest
    if reference.digest and reference.digest not in (own, index):
        msg = f"{reference.familiar}: what comes under this name is {index or own or 'without one'}"
        raise InvalidImage(msg, next_step="give it a name with a tag")
    platform = normalise(config_platform(parsed))
    layers, work = unpack_layers(
        store,
        sources,
        keep_blobs=keep_blobs,
        refetch=refetch,
        bounds=bounds,
        name=reference.familiar,
        say=say,
    )
    with work:
        work.protect(blobs=[own] if own else [])
        config_digest = store.blobs.put(config)
        if manifest is not None:
            store.blobs.put(manifest.raw)
        stored = [store.layers.need(layer.key) for layer in layers]
        if devices := sum(layer.devices for layer in stored):
            say(f"{reference.familiar}: {devices} device nodes became empty files")
        for number, layer in enumerate(stored, 1):
            for note in layer.notes:
                say(f"{reference.familiar}: layer {number}: {note}")
        now = time.time()
        image = store.record(
            Image(
                reference=reference,
                platform=platform,
                digest=own,
                index=index or own,
                config=parsed,
                raw=config,
                config_digest=config_digest,
                layers=layers,
                size=sum(layer.bytes for layer in stored),
                stored=now,
                last_use=now,
            )
        )
    store.empty_trash()
    return image
