"""Archives of `docker save`: manifest.json, configs, and plain tars of layers.

Not described by any specification; after what Docker, Podman and skopeo write and read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage, UsageError
from pytest_sandbox.oci.adding import add_image
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.descriptors import OCI_LAYER, Descriptor
from pytest_sandbox.oci.layout import file_source
from pytest_sandbox.oci.layout_files import read_file
from pytest_sandbox.oci.manifests import diff_ids, parse_config
from pytest_sandbox.oci.reference import Reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.layout_files import Files
    from pytest_sandbox.oci.store import Store

MANIFEST: Final = "manifest.json"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an archive: its references and the names of its files."""

    references: tuple[Reference, ...]
    config: str
    layers: tuple[str, ...]


def entries(files: Files, bounds: Bounds = DEFAULT_BOUNDS) -> list[Entry]:
    """The images of an archive. Raises InvalidImage where it is none."""
    try:
        listed = json.loads(read_file(files, MANIFEST, bounds.manifest))
    except (ValueError, RecursionError):
        msg = f"{MANIFEST} is no JSON"
        raise InvalidImage(msg) from None
    if not isinstance(listed, list):
        msg = f"{MANIFEST} is no list of images"
        raise InvalidImage(msg)
    return [_entry(found, bounds) for found in listed]


def _entry(found: object, bounds: Bounds) -> Entry:
    if not isinstance(found, dict):
        msg = f"{MANIFEST} lists what is no image"
        raise InvalidImage(msg)
    tags, layers, config = found.get("RepoTags") or [], found.get("Layers"), found.get("Config")
    if (
        not isinstance(config, str)
        or not isinstance(tags, list)
        or not isinstance(layers, list)
        or not all(isinstance(name, str) for name in (*tags, *layers))
    ):
        msg = f"{MANIFEST} lists an image without Config or Layers"
        raise InvalidImage(msg)
    if len(layers) > bounds.layers:
        msg = f"{MANIFEST} lists {len(layers)} layers; at most {bounds.layers} are taken"
        raise InvalidImage(msg)
    try:
        references = tuple(parse_reference(tag) for tag in tags)
    except UsageError as wrong:
        raise InvalidImage(wrong.what) from None
    return Entry(references, config, tuple(layers))


def load_entry(
    store: Store,
    files: Files,
    entry: Entry,
    reference: Reference,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    say: Callable[[str], None] = lambda _text: None,
) -> Image:
    """Take one image of an archive into the store. Raises InvalidImage."""
    config = read_file(files, entry.config, bounds.config)
    diffs = diff_ids(parse_config(config, bounds), layers=len(entry.layers))
    sources = [
        file_source(files, name, _describe(files, name), diff_id)
        for name, diff_id in zip(entry.layers, diffs, strict=True)
    ]
    return add_image(store, reference, config, sources, refetch=True, bounds=bounds, say=say)


def _describe(files: Files, name: str) -> Descriptor:
    """The descriptor of a layer: nothing in the archive holds the digest of its file."""
    found, size, head = hashlib.sha256(), 0, b""
    with files.open(name) as file:
        while block := file.read(_BLOCK):
            head = head or block[:4]
            found.update(block)
            size += len(block)
    kind = "+gzip" if head[:2] == b"\x1f\x8b" else "+zstd" if head == b"\x28\xb5\x2f\xfd" else ""
    return Descriptor(OCI_LAYER + kind, f"sha256:{found.hexdigest()}", size)


# --- writing ----------------------------------------------------------------------------------


def archive_files(
    images: Sequence[Image], plain: Callable[[str], Iterator[bytes]]
) -> Iterator[tuple[str, int | None, Iterator[bytes]]]:
    """The files of an archive with some images: name, size (None: not known before), content.

    The images have diff ids; `plain` gives the plain tar of a layer by its key, verified.
    """
    listed: list[dict[str, Any]] = []
    seen: set[str] = set()
    for image in images:
        if any(not layer.diff_id for layer in image.layers):
            msg = f"{image.reference.familiar} has layers without a diff id"
            raise ImageUnavailable(msg, blame=Blame.HOST, next_step="export it as a layout first")
        names = []
        for layer in image.layers:
            hexes = layer.diff_id.partition(":")[2]
            names.append(f"{hexes}/layer.tar")
            if layer.diff_id not in seen:
                seen.add(layer.diff_id)
                yield names[-1], None, plain(layer.key)
        config = f"{image.config_digest.partition(':')[2]}.json"
        if config not in seen:
            seen.add(config)
            yield config, len(image.raw), iter([image.raw])
        tag = image.reference.familiar.partition("@")[0]
        listed.append({"Config": config, "RepoTags": [tag], "Layers": names})
    data = json.dumps(listed).encode()
    yield MANIFEST, len(data), iter([data])
