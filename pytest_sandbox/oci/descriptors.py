"""Descriptors: media type, digest and size of a blob (image-spec, descriptor.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.digests import check_digest
from pytest_sandbox.oci.platforms import Platform, platform_of

if TYPE_CHECKING:
    from collections.abc import Mapping

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES: Final = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIG_TYPES: Final = (OCI_CONFIG, DOCKER_CONFIG)
LAYER_TYPES: Final = (
    OCI_LAYER,
    f"{OCI_LAYER}+gzip",
    f"{OCI_LAYER}+zstd",
    DOCKER_LAYER,
    f"{DOCKER_LAYER}.gzip",
    f"{DOCKER_LAYER}.zstd",
    # deprecated; `urls` of them are never asked, the registry is
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    f"{DOCKER_LAYER.replace('.rootfs.diff.tar', '.rootfs.foreign.diff.tar')}.gzip",
)
REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation that names an entry of an OCI layout."""
_MEDIA_TYPE: Final = re.compile(r"[a-zA-Z0-9][\w!#$&^.+-]{0,126}/[a-zA-Z0-9][\w!#$&^.+-]{0,126}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names a blob; `size` is in bytes. `urls` of a document are dropped: nothing asks them."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None

    def document(self) -> dict[str, Any]:
        """The descriptor as JSON writes it."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.platform is not None:
            shown = {
                "os": self.platform.os,
                "architecture": self.platform.architecture,
                "variant": self.platform.variant,
                "os.version": self.platform.os_version,
                "os.features": list(self.platform.os_features),
            }
            found["platform"] = {name: value for name, value in shown.items() if value}
        return found


def parse_descriptor(value: object, *, where: str) -> Descriptor:
    """A descriptor of a document; `where` names its place in errors. Raises InvalidImage."""
    if not isinstance(value, dict):
        what = f"{where} is no descriptor but a {type(value).__name__}"
        raise InvalidImage(what)
    media_type, size = value.get("mediaType"), value.get("size")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        what = f"{where}: {str(media_type)[:80]!r} is no media type"
        raise InvalidImage(what)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        what = f"{where}: {str(size)[:80]!r} is no size in bytes"
        raise InvalidImage(what)
    platform = value.get("platform")
    if platform is not None and not isinstance(platform, dict):
        what = f"{where}: its platform is a {type(platform).__name__}, not an object"
        raise InvalidImage(what)
    return Descriptor(
        media_type=media_type,
        digest=check_digest(value.get("digest"), where=where),
        size=size,
        annotations=parse_annotations(value.get("annotations"), where=where),
        platform=None if platform is None else platform_of(platform, where=where),
    )


def parse_annotations(value: object, *, where: str) -> dict[str, str]:
    """Annotations of a document: texts by texts; none where it holds none. Raises InvalidImage."""
    if value is None:
        return {}
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    what = f"{where}: its annotations are not texts"
    raise InvalidImage(what)
