"""Manifests, indexes and image configs: parsed strictly, kept as the bytes that came.

After image-spec (manifest.md, image-index.md, config.md) and Docker's schema 2. What two readers
could read differently (CVE-2021-41190) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds, raised
from pytest_sandbox.oci.descriptors import (
    CONFIG_TYPES,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    parse_annotations,
    parse_descriptor,
)
from pytest_sandbox.oci.digests import check_digest, digest_of
from pytest_sandbox.oci.documents import read_document
from pytest_sandbox.oci.platforms import Platform, platform_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEMA_1: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
_FIELDS: Final = ("schemaVersion", "mediaType", "config", "layers", "manifests")
_ATTESTATION: Final = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image (or artefact) for one platform. `raw` are the bytes that `digest` names."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)
    raw: bytes = field(repr=False)
    digest: str
    subject: Descriptor | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest itself."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    def check_image(self, *, what: str, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        """Hold it to be an image that can be unpacked: media types and sizes. `what` names it.

        Raises InvalidImage for artefacts, encrypted layers and sizes beyond the bounds.
        """
        if self.config.media_type not in CONFIG_TYPES:
            problem = f"{what} is no container image: its config is {self.config.media_type}"
            raise InvalidImage(
                problem, blame=Blame.UNSUPPORTED, next_step="give the reference of an image"
            )
        if self.config.size > bounds.config:
            problem = (
                f"{what}: its config has {self.config.size} bytes; at most {bounds.config} are"
                " taken"
            )
            raise InvalidImage(problem, next_step=raised("config"))
        for number, layer in enumerate(self.layers, 1):
            if layer.media_type not in LAYER_TYPES:
                problem = f"{what}: layer {number} is {layer.media_type}, which cannot be unpacked"
                raise InvalidImage(problem, blame=Blame.UNSUPPORTED)
            if layer.size > bounds.layer_bytes:
                problem = (
                    f"{what}: layer {number} has {layer.size} bytes; at most {bounds.layer_bytes}"
                    " are taken"
                )
                raise InvalidImage(problem, next_step=raised("layer_bytes"))


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, often one for each platform. `raw` are the bytes that `digest` names."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(hash=False)
    raw: bytes = field(repr=False)
    digest: str

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the index itself."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    def images(self) -> list[Descriptor]:
        """The entries that may be images: no attestations, nothing of an unknown media type."""
        return [
            entry
            for entry in self.manifests
            if entry.media_type in MANIFEST_TYPES and not is_attestation(entry)
        ]

    def indexes(self) -> list[Descriptor]:
        """The entries that are indexes themselves."""
        return [entry for entry in self.manifests if entry.media_type in INDEX_TYPES]


def is_attestation(entry: Descriptor) -> bool:
    """Whether an entry only says something about another one (BuildKit's `unknown/unknown`)."""
    unknown = entry.platform is not None and entry.platform.architecture == "unknown"
    return unknown or _ATTESTATION in entry.annotations


def media_type_of(content_type: str) -> str:
    """The media type of a Content-Type header: without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def parse_manifest(
    data: bytes, content_type: str, bounds: Bounds = DEFAULT_BOUNDS, *, what: str = "the manifest"
) -> Manifest | Index:
    """The manifest or index in `data`, of the media type in `content_type`.

    The media type in the body, if there is one, must be the same; one of the two must be there.
    `what` names the document in errors. Verify size and digest before. Raises InvalidImage.
    """
    document = read_document(data, what=what, limit=bounds.manifest)
    media_type = _media_type(document, media_type_of(content_type), what)
    # Go reads keys in any case: `Layers` beside `layers` would be two images in one document
    for name in document:
        if name not in _FIELDS and name.lower() in [known.lower() for known in _FIELDS]:
            problem = f"{what} holds the key {name!r}, which other readers take for another"
            raise InvalidImage(problem)
    if document.get("schemaVersion") != 2:
        problem = f"{what}: schemaVersion is {str(document.get('schemaVersion'))[:40]!r}, not 2"
        raise InvalidImage(problem)
    is_index = media_type in INDEX_TYPES
    foreign = ("config", "layers") if is_index else ("manifests",)
    for name in foreign:
        if name in document:
            kind = "an index" if is_index else "a manifest"
            problem = f"{what} is ambiguous: {kind} ({media_type}) that also holds {name!r}"
            raise InvalidImage(problem)
    annotations = parse_annotations(document.get("annotations"), where=what)
    digest = digest_of(data)
    if is_index:
        manifests = tuple(
            parse_descriptor(entry, where=f"{what}, manifests[{number}]")
            for number, entry in enumerate(_list(document, "manifests", what))
        )
        return Index(media_type, manifests, annotations, data, digest)
    layers = _list(document, "layers", what)
    if len(layers) > bounds.layers:
        problem = f"{what} has {len(layers)} layers; at most {bounds.layers} are taken"
        raise InvalidImage(problem, next_step=raised("layers"))
    subject = document.get("subject")
    return Manifest(
        media_type=media_type,
        config=parse_descriptor(document.get("config"), where=f"{what}, config"),
        layers=tuple(
            parse_descriptor(layer, where=f"{what}, layers[{number}]")
            for number, layer in enumerate(layers)
        ),
        annotations=annotations,
        raw=data,
        digest=digest,
        subject=None if subject is None else parse_descriptor(subject, where=f"{what}, subject"),
    )


def _media_type(document: Mapping[str, Any], header: str, what: str) -> str:
    body = document.get("mediaType")
    if header in _SCHEMA_1 or body in _SCHEMA_1 or document.get("schemaVersion") == 1:
        problem = f"{what} is in Docker's schema 1, which nothing vouches for and nobody makes now"
        raise InvalidImage(
            problem,
            blame=Blame.UNSUPPORTED,
            next_step="push the image again with a tool of this decade, or take a newer tag",
        )
    if body is not None and not isinstance(body, str):
        problem = f"{what}: its mediaType is a {type(body).__name__}, not a text"
        raise InvalidImage(problem)
    if header and body and header != body:
        problem = f"{what} is ambiguous: it came as {header[:120]}, and calls itself {body[:120]}"
        raise InvalidImage(problem)
    media_type = header or body or ""
    if media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
        problem = f"{what} is of the media type {media_type[:120] or '(none)'}, which is no image"
        raise InvalidImage(problem, blame=Blame.UNSUPPORTED)
    return media_type


def _list(document: Mapping[str, Any], name: str, what: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list):
        problem = f"{what}: {name} is a {type(value).__name__}, not a list"
        raise InvalidImage(problem)
    return value


def parse_config(data: bytes, bounds: Bounds = DEFAULT_BOUNDS) -> dict[str, Any]:
    """An image config as JSON; its parts are checked by who reads them. Raises InvalidImage."""
    return read_document(data, what="the image config", limit=bounds.config)


def diff_ids(config: Mapping[str, Any], *, layers: int | None = None) -> tuple[str, ...]:
    """The digests of the unpacked layers, bottom first; `layers` is how many there must be.

    Raises InvalidImage.
    """
    rootfs = config.get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    kind = rootfs.get("type", "layers") if isinstance(rootfs, dict) else ""
    if not isinstance(listed, list) or kind != "layers":
        problem = "the image config: rootfs holds no list of diff_ids of the type layers"
        raise InvalidImage(problem)
    if layers is not None and len(listed) != layers:
        problem = f"the image config lists {len(listed)} layers, its manifest {layers}"
        raise InvalidImage(problem)
    return tuple(
        check_digest(entry, where=f"the image config, rootfs.diff_ids[{number}]")
        for number, entry in enumerate(listed)
    )


def config_platform(config: Mapping[str, Any]) -> Platform:
    """What an image config says that it runs on. Raises InvalidImage where it does not say."""
    found = platform_of(config, where="the image config")
    if not found.os or not found.architecture:
        problem = "the image config names no operating system or no architecture"
        raise InvalidImage(problem)
    return found
