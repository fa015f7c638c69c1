"""The Linux families: base images and infrastructure packages, from images/families.toml."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomli

from pytest_sandbox.errors import UsageError
from pytest_sandbox.recipes.grammar import GrammarError, check_package
from pytest_sandbox.targets import ARCHES, FAMILIES, FAMILY_MANAGERS

if TYPE_CHECKING:
    from collections.abc import Mapping

# [HOST[:PORT]/]PATH[:TAG][@sha256:HEX], as the engines take it
_REFERENCE: Final = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)


class Infrastructure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Packages that a base lacks: for unpacking, for downloads from inside, for compilers."""

    core: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    build: tuple[str, ...] = ()


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One Linux family. `image` is the base's reference, `suite` its release where bootstrapping
    needs it, `arches` the architectures that the image is made for, `ppa_image` the base instead of
    it where a PPA is asked for."""

    name: str
    manager: str
    image: str
    infrastructure: Infrastructure
    suite: str = ""
    arches: tuple[str, ...] = ARCHES
    ppa_image: str = ""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    image: str
    infra_packages: Infrastructure
    suite: str = ""
    arches: tuple[str, ...] = ARCHES
    ppa_image: str = ""


def load_families(
    file: Path | None = None, overrides: Mapping[str, str] | None = None
) -> Mapping[str, Family]:
    """Family name -> Family.

    `file` is a TOML file of the user's (or JSON, by its suffix); its tables replace what the
    package ships, key by key. `overrides` maps family names to base images and wins over both.
    An image of the user's own counts as made for every architecture, unless the file says
    `arches`.
    Raises UsageError that names file and key.
    """
    families = _shipped() if file is None else _merged(file)
    if not overrides:
        return families
    found = dict(families)
    for name, reference in overrides.items():
        if name not in found:
            msg = f"base image {reference!r}: unknown family {name!r}"
            raise UsageError(msg, next_step=f"use one of {', '.join(FAMILIES)}")
        found[name] = msgspec.structs.replace(
            found[name], image=_reference(reference, f"base image of {name}"), arches=ARCHES
        )
    return found


def untagged(reference: str) -> tuple[str, str]:
    """A reference without its digest, and the digest (`sha256:...`) or empty."""
    name, _, digest = reference.partition("@")
    return name, digest


@lru_cache(maxsize=1)
def _shipped_document() -> dict[str, Any]:
    path = Path(__file__).with_name("families.toml")
    return tomli.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, Family]:
    return _families(_shipped_document(), "families.toml")


def _merged(file: Path) -> Mapping[str, Family]:
    try:
        text = file.read_text(encoding="utf-8")
        document = msgspec.json.decode(text) if file.suffix == ".json" else tomli.loads(text)
    except OSError as wrong:
        msg = f"{file}: {wrong.strerror}"
        raise UsageError(msg, next_step="name a readable file of families") from None
    except (UnicodeDecodeError, tomli.TOMLDecodeError, msgspec.DecodeError) as wrong:
        msg = f"{file}: {wrong}"
        raise UsageError(msg, next_step="correct the file of families") from None
    if not isinstance(document, dict):
        msg = f"{file}: expected one table a family"
        raise UsageError(msg, next_step="write [debian] and image = ...")
    merged = {name: dict(table) for name, table in _shipped_document().items()}
    for name, table in document.items():
        if name not in merged or not isinstance(table, dict):
            msg = f"{file}: {name}: is no family with a table of its own"
            raise UsageError(msg, next_step=f"use one of {', '.join(FAMILIES)}")
        if table.get("image", merged[name]["image"]) != merged[name]["image"]:
            merged[name].pop("arches", None)  # what is known of ours says nothing of another image
        merged[name].update(table)
    return _families(merged, str(file))


def _families(document: Mapping[str, Any], where: str) -> Mapping[str, Family]:
    found = {}
    for name, table in document.items():
        try:
            entry = msgspec.convert(table, _Entry)
        except msgspec.ValidationError as wrong:
            msg = f"{where}: {name}: {wrong}"
            raise UsageError(msg, next_step="correct the file of families") from None
        manager = FAMILY_MANAGERS[name]
        for package in (
            *entry.infra_packages.core,
            *entry.infra_packages.network,
            *entry.infra_packages.build,
        ):
            try:
                check_package(manager, package)
            except GrammarError as wrong:
                msg = f"{where}: {name}.infra_packages: {wrong}"
                raise UsageError(msg, next_step="correct the package's name") from None
        found[name] = Family(
            name=name,
            manager=manager,
            image=_reference(entry.image, f"{where}: {name}.image"),
            infrastructure=entry.infra_packages,
            suite=entry.suite,
            arches=entry.arches,
            ppa_image=entry.ppa_image and _reference(entry.ppa_image, f"{where}: {name}.ppa_image"),
        )
    return found


def _reference(reference: str, where: str) -> str:
    if not _REFERENCE.fullmatch(reference):
        msg = f"{where}: {reference!r} is no image reference"
        raise UsageError(msg, next_step="write it like docker.io/library/debian:trixie-slim")
    return reference
