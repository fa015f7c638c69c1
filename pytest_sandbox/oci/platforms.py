"""Platforms by Go's names, and the choice among an index's entries (image-spec, image-index.md)."""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.oci.descriptors import Descriptor

# architecture as people write it -> (Go's name, variant)
_ALIASES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv7": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
# the variant that a name without one stands for; it is then written without
_BASELINE: Final = {"amd64": "v1", "arm64": "v8"}
_KNOWN: Final = (
    *("386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"),
    *("mips", "mipsle", "mips64", "ppc64", "wasm"),
)
_SYSTEMS: Final = ("linux", "windows", "freebsd", "darwin")
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TEXT: Final = re.compile(r"[ -~]{1,128}")


class Platform(NamedTuple):
    """What an image runs on; fields in Go's names, normalised by `normalise`.

    `variant` is the CPU's (`v7` for arm; empty for the common one of amd64 and arm64).
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.os}/{self.architecture}"
        return f"{text}/{self.variant}" if self.variant else text


@lru_cache(maxsize=64)
def normalise(found: Platform) -> Platform:
    """The same platform in its one spelling: Go's names, the baseline variant left out."""
    system = found.os.lower()
    architecture, variant = found.architecture.lower(), found.variant.lower()
    if architecture in _ALIASES:
        architecture, implied = _ALIASES[architecture]
        variant = variant or implied
    if re.fullmatch(r"[0-9]+", variant):
        variant = f"v{variant}"
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant == _BASELINE.get(architecture):
        variant = ""
    return Platform(system, architecture, variant, found.os_version, found.os_features)


def parse_platform(text: str) -> Platform:
    """`linux/arm64`, `linux/arm/v7`, or an architecture alone (then linux). Raises UsageError."""
    parts = text.split("/")
    if len(parts) == 1 and parts[0].lower() not in _SYSTEMS:
        parts = ["linux", *parts]
    if len(parts) == 1:
        parts = [*parts, os.uname().machine]
    if len(parts) <= 3 and all(_WORD.fullmatch(part) for part in parts):
        found = normalise(Platform(parts[0], parts[1], parts[2] if len(parts) > 2 else ""))
        if found.os in _SYSTEMS and found.architecture in _KNOWN:
            return found
    what = f"{text[:80]!r} is no platform"
    raise UsageError(what, next_step="write OS/ARCHITECTURE[/VARIANT], such as linux/arm64")


def host_platform() -> Platform:
    """The platform of this machine; on other systems than Linux, that of the Linux beside it."""
    system = sys.platform if sys.platform in _SYSTEMS else "linux"
    return normalise(Platform("linux" if system == "darwin" else system, os.uname().machine))


def platform_of(fields: Mapping[str, Any], *, where: str) -> Platform:
    """The platform in a descriptor or an image config. Raises InvalidImage for wrong types."""

    def text(name: str) -> str:
        value = fields.get(name) or ""
        if not isinstance(value, str) or (value and not _TEXT.fullmatch(value)):
            what = f"{where}: its {name} is no short text"
            raise InvalidImage(what)
        return value

    features = fields.get("os.features") or []
    if not isinstance(features, list) or not all(isinstance(item, str) for item in features):
        what = f"{where}: its os.features are no list of texts"
        raise InvalidImage(what)
    found = Platform(
        text("os"), text("architecture"), text("variant"), text("os.version"), tuple(features)
    )
    return normalise(found)


def runs(image: Platform, wanted: Platform) -> bool:
    """Whether an image of one platform is for another: the same, or a lower variant of its CPU."""
    return _rank(normalise(image), normalise(wanted)) is not None


def choose(candidates: Sequence[Descriptor], wanted: Platform, *, what: str) -> Descriptor:
    """The entry for a platform: its exact variant, else the next lower one; the first of equals.

    An only entry that names no platform is taken (its config is checked later). `what` names the
    image in errors. Raises ImageUnavailable that lists what exists.
    """
    wanted = normalise(wanted)
    best: tuple[int, Descriptor] | None = None
    for entry in candidates:
        rank = None if entry.platform is None else _rank(entry.platform, wanted)
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, entry)
    if best is not None:
        return best[1]
    if len(candidates) == 1 and candidates[0].platform is None:
        return candidates[0]
    names = sorted({str(entry.platform or "an unnamed platform") for entry in candidates})
    listed = ", ".join(names[:20]) + (" and more" if len(names) > 20 else "")
    problem = f"{what} is not made for {wanted}; it exists for {listed or 'no platform at all'}"
    raise ImageUnavailable(
        problem,
        blame=Blame.UNSUPPORTED,
        next_step="ask for one of those with --platform, or take another image",
    )


def _rank(image: Platform, wanted: Platform) -> int | None:
    """How far an image's variant is below the wanted one; None where it does not fit."""
    if (image.os, image.architecture) != (wanted.os, wanted.architecture):
        return None
    if wanted.os_version and image.os_version not in ("", wanted.os_version):
        return None
    if not set(image.os_features) <= set(wanted.os_features):
        return None
    if image.variant == wanted.variant:
        return 0
    have, want = _level(image), _level(wanted)
    if have is None or want is None or have > want:
        return None
    return want - have


def _level(found: Platform) -> int | None:
    """The number of a variant: v7 is 7, the baseline's where none is written."""
    variant = found.variant or _BASELINE.get(found.architecture, "")
    match = re.fullmatch(r"v([0-9]{1,2})(?:\.[0-9]+)?", variant)
    return int(match[1]) if match else None
