"""How much of anything a registry, an archive or an image may hand to us."""

from __future__ import annotations

from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Bounds(NamedTuple):
    """The greatest sizes that are taken; each is raised by a setting. Sizes are in bytes.

    `index_depth` counts nested indexes (1: an index of manifests), `entries` and `layer_bytes` the
    files and the unpacked size of one layer. `ratio` is unpacked size by packed size, looked at
    only after `ratio_floor` unpacked bytes. `record` is one PAX or long-name record of an archive,
    `path` one path in it. `token` is a registry's answer with a token, `error` an error page.
    """

    manifest: int = 4 * MIB
    config: int = 8 * MIB
    index_depth: int = 2
    layers: int = 512
    entries: int = 2_000_000
    layer_bytes: int = 32 * GIB
    ratio: int = 200
    ratio_floor: int = 100 * MIB
    record: int = 1 * MIB
    zstd_window: int = 128 * MIB
    path: int = 4096
    token: int = 256 * KIB
    error: int = 16 * KIB


DEFAULT_BOUNDS = Bounds()

STORED = Bounds(**dict.fromkeys(Bounds._fields, 1 << 62) | {"zstd_window": 1 << 31})
"""For what is in the store: it was held to bounds on its way in, perhaps to higher ones."""


def raised(name: str) -> str:
    """The next step of an error over a bound, a field's name."""
    return f"if you trust it, raise the bound: --sandbox-image-bound {name.replace('_', '-')}=VALUE"
