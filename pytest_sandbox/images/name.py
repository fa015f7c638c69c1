"""The name of an image: everything that can change its content, and nothing else."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pytest_sandbox.images.spec import ImageSpec

GENERATOR: Final = 1
"""Counts up when images that are built from the same words come out differently."""

PREFIX: Final = "tsuku/sandbox-cache"

FAMILY_LABEL: Final = "org.pytest-sandbox.family"
HASH_LABEL: Final = "org.pytest-sandbox.hash"


def image_key(spec: ImageSpec) -> bytes:
    """The canonical JSON (sorted keys, no spaces) that is hashed."""
    key = {
        "base": spec.base_digest or spec.base,
        "target": str(spec.target),
        "commands": spec.commands,
        "repositories": spec.repositories,
        "keys": spec.keys,
        "certificates": spec.certificates,
        "generator": GENERATOR,
    }
    return msgspec.json.encode(key, order="sorted")


def image_hash(spec: ImageSpec) -> str:
    """SHA-256 of the image's key, 64 hex digits."""
    return sha256(image_key(spec)).hexdigest()


def image_name(spec: ImageSpec, prefix: str = PREFIX) -> str:
    """`tsuku/sandbox-cache:<16 hex>`; a plain spec has the base's own name."""
    return spec.base if spec.plain else f"{prefix}:{image_hash(spec)[:16]}"
