"""An image whose layers are not usable now, but whose archives are here: unpacked again, offline.

That is so after a restart of the machine (a layer that may not have reached the disk is not
trusted), and where layers were unpacked in other ids or for another snapshotter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.errors import Blame, ImageUnavailable
from pytest_sandbox.oci.adding import add_image
from pytest_sandbox.oci.bounds import STORED
from pytest_sandbox.oci.layout import stored_manifest
from pytest_sandbox.oci.unpacking import LayerSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.oci.spool import Spool
    from pytest_sandbox.oci.store import Store


def restore(
    store: Store,
    reference: Reference,
    platform: Platform,
    *,
    say: Callable[[str], None] = lambda _text: None,
) -> Image | None:
    """Unpack again what a reference stands for; None where an archive of it is not here.

    Raises InvalidImage for archives that were damaged since.
    """
    image = store.records.find(reference, platform)
    if image is None:
        return None
    sources: list[LayerSource] = []
    for layer in image.layers:
        blob = layer.blob
        if blob is None or not layer.diff_id or not store.blobs.has(blob.digest, blob.size):
            return None
        sources.append(LayerSource(blob, layer.diff_id, _fetch))
    if image.digest and not store.blobs.has(image.digest):
        return None
    manifest = stored_manifest(store, image) if image.digest else None
    say(f"{reference.familiar}: unpacked again from what is in the store")
    return add_image(
        store,
        reference,
        image.raw,
        sources,
        manifest=manifest,
        index=image.index,
        bounds=STORED,
        say=say,
    )


def _fetch(_spool: Spool) -> NoReturn:
    """Only called for an archive that went away under us."""
    msg = "an archive of the image was removed meanwhile"
    raise ImageUnavailable(msg, blame=Blame.HOST, next_step="run it again")
