"""Images on other images: the same name and content as if each had been built alone.

Only for apt, which tells beforehand what a set of packages consists of. All of that is asked for
by name, so that nothing depends on what is installed already; then what was not asked for by the
spec is marked as apt itself would have marked it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from pytest_sandbox.images.dockerfile import certificate_commands, group_commands
from pytest_sandbox.images.installing import KEEPING, layered_command, wants_documentation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_sandbox.images.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class Upon:
    """What an image stands on instead of its base: the image `base`, and the `commands` that are
    left then. `ground` is the key of the package lists that all of them use.
    """

    base: str
    commands: tuple[str, ...]
    ground: str


def can_share(spec: ImageSpec) -> bool:
    """Whether the spec is of the kind whose packages may be installed in stages."""
    return (
        KEEPING[spec.target.family].resolves
        and bool(names_of(spec))
        and not spec.repositories
        and not spec.keys
    )


def names_of(spec: ImageSpec) -> tuple[str, ...]:
    """The packages that the spec asks for."""
    return tuple(sorted({name for names in spec.packages.values() for name in names}))


def group_of(spec: ImageSpec) -> tuple[object, ...]:
    """Specs of one group begin alike and install alike."""
    return (
        spec.base,
        spec.base_digest,
        spec.target,
        spec.certificates,
        _documented(spec),
    )


def _documented(spec: ImageSpec) -> bool:
    return spec.documentation or wants_documentation(names_of(spec))


def beginning(spec: ImageSpec) -> ImageSpec:
    """All that comes before the packages."""
    commands = tuple(certificate_commands(spec.target.family, len(spec.certificates)))
    return msgspec.structs.replace(spec, commands=commands, packages={}, groups=(), notices=())


def common_spec(like: ImageSpec, parts: Iterable[str]) -> ImageSpec:
    """An image of a group that has `parts` (names of archives), and nothing that was asked for."""
    names = packages_of(parts, like.target.arch)
    start = beginning(like)
    documentation = _documented(like)
    command = layered_command(like.target.family, (), names, documentation=documentation)
    manager = next(iter(like.packages))
    return msgspec.structs.replace(
        start, commands=(*start.commands, command), packages={manager: names}
    )


def upon(spec: ImageSpec, parts: Iterable[str], base: str, ground: str) -> Upon:
    """How `spec`, which consists of `parts`, is made on the image `base` of the same group."""
    family, names = spec.target.family, names_of(spec)
    everything = tuple(sorted({*names, *packages_of(parts, spec.target.arch)}))
    documentation = _documented(spec)
    command = layered_command(family, names, everything, documentation=documentation)
    return Upon(base, (command, *group_commands(spec.groups)), ground)


def upon_beginning(spec: ImageSpec, base: str, ground: str) -> Upon:
    """The same for an image on what `beginning` gives: all the rest, as it is alone."""
    return Upon(base, spec.commands[len(beginning(spec).commands) :], ground)


def upon_common(common: ImageSpec, base: str, ground: str) -> Upon:
    """The same for an image of `common_spec`."""
    return Upon(base, common.commands[-1:], ground)


def dockerfile_upon(text: str, wanted: Upon) -> str:
    """The Dockerfile of an image built alone, as it is on another image: its labels stay."""
    labels = [line for line in text.splitlines() if line.startswith("LABEL ")]
    return "\n".join([f"FROM {wanted.base}", *labels, *wanted.commands]) + "\n"


def sizes_of(lines: Iterable[str]) -> Mapping[str, int]:
    """Archive -> bytes, from what a manager told."""
    found = {}
    for line in lines:
        name, _, rest = line.partition(" ")
        size = rest.partition(" ")[0]
        if name and size.isdigit():
            found[name] = int(size)
    return found


def packages_of(parts: Iterable[str], arch: str) -> tuple[str, ...]:
    """The packages in archives that apt named: NAME_VERSION_ARCH.deb."""
    found = set()
    for part in parts:
        name, _, rest = part.partition("_")
        own = rest.rpartition("_")[2].removesuffix(".deb")
        found.add(name if own in {arch, "all"} else f"{name}:{own}")
    return tuple(sorted(found))


__all__ = [
    "Upon",
    "beginning",
    "can_share",
    "common_spec",
    "dockerfile_upon",
    "group_of",
    "names_of",
    "packages_of",
    "sizes_of",
    "upon",
    "upon_beginning",
    "upon_common",
]
