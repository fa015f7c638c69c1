"""An image of a store, as a value."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.descriptors import Descriptor
    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.reference import Reference


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """One layer of an image: `key` names the unpacked one in the store.

    `diff_id` is empty for a layer that was made here and that nobody has asked for as an archive;
    `blob` is None for that, and for a layer whose archive is not known.
    """

    key: str
    diff_id: str = ""
    blob: Descriptor | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A reference and what it stands for on one platform.

    `digest` names the manifest and `index` what the registry gave for the reference (an index or
    the manifest itself); both are empty for an image made here, until it is exported or pushed.
    `raw` are the bytes of the config, `config` the same parsed. `size` is unpacked bytes.
    """

    reference: Reference
    platform: Platform
    digest: str
    index: str
    config: Mapping[str, Any] = field(hash=False)
    raw: bytes = field(repr=False)
    config_digest: str
    layers: tuple[ImageLayer, ...]
    size: int
    stored: float
    last_use: float
    pinned: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the unpacked layers, bottom first."""
        return tuple(layer.key for layer in self.layers)

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the config."""
        section = self.config.get("config")
        found = section.get("Labels") if isinstance(section, dict) else None
        if not isinstance(found, dict):
            return {}
        return {name: text for name, text in found.items() if isinstance(text, str)}

    @property
    def created(self) -> float:
        """When it was built, in seconds since 1970; 0 where the config does not say."""
        return posix_time(self.config.get("created"))


def posix_time(text: object) -> float:
    """Seconds since 1970 of a time as RFC 3339 writes it; 0 for anything else."""
    if not isinstance(text, str) or len(text) > 64:
        return 0.0
    try:
        found = datetime.datetime.fromisoformat(text)
        return max(found.replace(tzinfo=found.tzinfo or datetime.UTC).timestamp(), 0.0)
    except (ValueError, OverflowError, OSError):
        return 0.0


def rfc3339(seconds: float) -> str:
    """A time as image configs write it."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
