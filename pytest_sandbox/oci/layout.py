"""OCI layouts (image-spec, image-layout.md): a folder, or a tar of one.

Raw bytes come in and go out: the digests of an image are the same on both sides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, InvalidImage, UsageError
from pytest_sandbox.oci.adding import add_image
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, STORED, Bounds
from pytest_sandbox.oci.descriptors import (
    OCI_INDEX,
    OCI_MANIFEST,
    REFERENCE_NAME,
    Descriptor,
)
from pytest_sandbox.oci.digests import check_bytes, hex_of
from pytest_sandbox.oci.documents import read_document
from pytest_sandbox.oci.layout_files import read_file
from pytest_sandbox.oci.manifests import (
    Index,
    Manifest,
    diff_ids,
    is_attestation,
    parse_config,
    parse_manifest,
)
from pytest_sandbox.oci.platforms import Platform, choose, host_platform, normalise
from pytest_sandbox.oci.reference import Reference, parse_reference
from pytest_sandbox.oci.unpacking import LayerSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.layout_files import Files
    from pytest_sandbox.oci.spool import Spool
    from pytest_sandbox.oci.store import Store

MARK: Final = "oci-layout"
INDEX: Final = "index.json"
VERSION: Final = "1.0.0"
CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The annotation in which containerd, BuildKit and Docker write the whole reference."""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a layout: the name that the layout gives it (may be empty), and where it is."""

    name: str
    descriptor: Descriptor

    def reference(self) -> Reference | None:
        """The name as a reference; None where it is just a tag, or none at all."""
        if not ("/" in self.name or ":" in self.name):
            return None
        try:
            return parse_reference(self.name)
        except UsageError:
            return None


def entries(files: Files, bounds: Bounds = DEFAULT_BOUNDS) -> list[Entry]:
    """The images of a layout. Raises InvalidImage where it is none."""
    mark = read_document(read_file(files, MARK, 4096), what=MARK, limit=4096)
    version = mark.get("imageLayoutVersion")
    if version != VERSION:
        msg = f"the layout has the version {str(version)[:40]!r}, expected {VERSION}"
        raise InvalidImage(msg, blame=Blame.UNSUPPORTED)
    data = read_file(files, INDEX, bounds.manifest)
    top = parse_manifest(data, OCI_INDEX, bounds, what=INDEX)
    assert isinstance(top, Index)
    found = []
    for descriptor in top.manifests:
        if is_attestation(descriptor):
            continue
        annotations = descriptor.annotations
        name = annotations.get(CONTAINERD_NAME) or annotations.get(REFERENCE_NAME, "")
        found.append(Entry(name, descriptor))
    return found


def load_entry(
    store: Store,
    files: Files,
    entry: Entry,
    reference: Reference,
    *,
    platform: Platform | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    say: Callable[[str], None] = lambda _text: None,
) -> Image:
    """Take one image of a layout, for a platform (this machine's), into the store.

    Raises InvalidImage, ImageUnavailable where it is not for the platform.
    """
    wanted = normalise(platform or host_platform())
    manifest = _manifest(files, entry.descriptor, wanted, reference.familiar, bounds)
    manifest.check_image(what=reference.familiar, bounds=bounds)
    config = _blob(files, manifest.config, bounds.config)
    diffs = diff_ids(parse_config(config, bounds), layers=len(manifest.layers))
    return add_image(
        store,
        reference,
        config,
        [
            file_source(files, _path(blob.digest), blob, diff_id)
            for blob, diff_id in zip(manifest.layers, diffs, strict=True)
        ],
        manifest=manifest,
        index=entry.descriptor.digest,
        refetch=True,  # each archive is kept, also of a layer that is unpacked already
        bounds=bounds,
        say=say,
    )


def file_source(files: Files, name: str, blob: Descriptor, diff_id: str) -> LayerSource:
    """A layer that is a file of a layout or archive."""

    def fetch(spool: Spool) -> None:
        with files.open(name) as file:
            while block := file.read(_BLOCK):
                spool.write(block)

    return LayerSource(blob, diff_id, fetch)


def _manifest(
    files: Files, descriptor: Descriptor, wanted: Platform, what: str, bounds: Bounds
) -> Manifest:
    for _ in range(bounds.index_depth + 1):
        data = _blob(files, descriptor, bounds.manifest)
        found = parse_manifest(data, descriptor.media_type, bounds, what=what)
        if isinstance(found, Manifest):
            return found
        nested = found.indexes()
        descriptor = choose(found.images() or nested, wanted, what=what)
    msg = f"{what}: indexes are nested more than {bounds.index_depth} deep"
    raise InvalidImage(msg)


def _blob(files: Files, descriptor: Descriptor, limit: int) -> bytes:
    if descriptor.size > limit:
        msg = f"{descriptor.digest} has {descriptor.size} bytes; at most {limit} are taken"
        raise InvalidImage(msg)
    data = read_file(files, _path(descriptor.digest), limit)
    check_bytes(data, descriptor.digest, descriptor.size)
    return data


def _path(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


# --- writing ----------------------------------------------------------------------------------


def stored_manifest(store: Store, image: Image) -> Manifest:
    """The manifest of an image that has one. Raises ImageUnavailable where it is gone."""
    raw = store.blobs.read(image.digest)
    media_type = json.loads(raw).get("mediaType", OCI_MANIFEST)
    found = parse_manifest(raw, media_type, STORED, what=image.reference.familiar)
    assert isinstance(found, Manifest)
    return found


def layout_files(store: Store, image: Image) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """The files of a layout with one image: name, size, content. Every blob is verified.

    The image has its manifest (see local_images.complete). Raises ImageUnavailable where a blob is
    not in the store.
    """
    manifest = stored_manifest(store, image)
    seen: set[str] = set()
    for blob in (*manifest.layers, manifest.config, manifest.descriptor):
        if blob.digest not in seen:
            seen.add(blob.digest)
            yield _path(blob.digest), blob.size, store.blobs.blocks(blob.digest)
    named = {
        REFERENCE_NAME: image.reference.tag or "latest",
        CONTAINERD_NAME: str(image.reference),
    }
    top = replace(manifest.descriptor, annotations=named, platform=image.platform)
    index: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [top.document()],
    }
    for name, document in ((INDEX, index), (MARK, {"imageLayoutVersion": VERSION})):
        data = json.dumps(document).encode()
        yield name, len(data), iter([data])
