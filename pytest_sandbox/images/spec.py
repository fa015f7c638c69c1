"""SystemRequirements + Target -> ImageSpec: what to build, as pure data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pytest_sandbox.errors import Blame, ImageUnavailable, SpecError
from pytest_sandbox.images.dockerfile import (
    certificate_commands,
    group_commands,
    repository_commands,
)
from pytest_sandbox.images.families import untagged
from pytest_sandbox.images.installing import install_commands
from pytest_sandbox.images.repositories import KeyFile, key_files
from pytest_sandbox.images.requirements import Repository  # noqa: TC001 - msgspec reads it
from pytest_sandbox.targets import MANAGERS, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_sandbox.images.families import Family
    from pytest_sandbox.images.requirements import Mode, SystemRequirements


class NoBase(SpecError, ImageUnavailable):
    """The family has no base image for the target's architecture: no spec, and an absence like a
    base that cannot be pulled.
    """

    blame = Blame.UNSUPPORTED


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An image that does not exist yet.

    `base` stands in FROM; `base_digest` (`sha256:...`, empty where nothing pins it) is what counts
    of it; `reference` is the base as the families name it. `commands` are the Dockerfile's
    instructions after FROM. The host fetches `keys` when it builds and copies them and the PEM
    texts of `certificates` into the context. `notices` say what a recipe asked for that an image
    cannot have; with `documentation`, packages keep theirs.
    """

    target: Target
    base: str
    base_digest: str = ""
    reference: str = ""
    commands: tuple[str, ...] = ()
    keys: tuple[KeyFile, ...] = ()
    certificates: tuple[str, ...] = ()
    packages: dict[str, tuple[str, ...]] = {}
    repositories: tuple[Repository, ...] = ()
    groups: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    documentation: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing to build: the base itself is the image."""
        return not self.commands


def augment(
    packages: Mapping[str, Iterable[str]], family: Family | None, mode: Mode
) -> dict[str, tuple[str, ...]]:
    """The packages with the infrastructure that `mode` needs, sorted and without duplicates.

    It goes to the manager that is there already, else to the family's; of several, to the first.
    """
    found = {manager: set(names) for manager, names in packages.items()}
    if mode != "none" and family is not None:
        extra = {*family.infrastructure.core, *family.infrastructure.network}
        if mode == "build":
            extra.update(family.infrastructure.build)
        if extra:
            manager = min(found) if found else family.manager
            found.setdefault(manager, set()).update(extra)
    return {manager: tuple(sorted(names)) for manager, names in sorted(found.items())}


def derive_spec(
    requirements: SystemRequirements,
    target: Target,
    *,
    families: Mapping[str, Family],
    certificates: Iterable[str] = (),
    base_digests: Mapping[str, str] | None = None,
) -> ImageSpec:
    """The image that `requirements` need on `target`.

    `base_digests` maps references (without a digest) of bases that were bootstrapped for the
    target's architecture to the SHA-256 of their content, which then takes the digest's place.
    Raises SpecError for managers of different families, a manager that is not the target's, and a
    family that is not known; NoBase for one that has no base for the target's architecture.
    """
    family = families.get(target.family)
    if target.os != "linux" or family is None:
        msg = f"there are no images for {target}"
        raise SpecError(msg, blame=Blame.UNSUPPORTED, next_step="choose a Linux target")
    check_managers(requirements, target)
    if reason := no_base_reason(family, target):
        raise NoBase(reason, next_step=f"name one that has it: --sandbox-base {family.name}=IMAGE")
    packages = augment(requirements.packages, family, requirements.infrastructure)
    repositories = requirements.repositories
    reference = family.image
    if any(one.kind == "ppa" for one in repositories) and family.ppa_image:
        reference = family.ppa_image
    base, digest = _base(reference, base_digests or {})
    commands = [
        *repository_commands(target.family, repositories),
        *install_commands(
            target.family,
            packages.get(family.manager, ()),
            documentation=requirements.documentation,
        ),
        *group_commands(requirements.groups),
    ]
    _check_filled(packages, requirements)
    # a system that reaches out has to trust what the host trusts, built upon or not
    pems = tuple(sorted(set(certificates))) if commands or requirements.network else ()
    return ImageSpec(
        target=target,
        base=base,
        base_digest=digest,
        reference=reference,
        commands=(*certificate_commands(target.family, len(pems)), *_once(commands)),
        keys=key_files(repositories),
        certificates=pems,
        packages=packages,
        repositories=repositories,
        groups=requirements.groups,
        documentation=requirements.documentation,
        notices=tuple(
            f"service {name} is not started: a sandbox has no init system"
            for name in requirements.services
        ),
    )


def no_base_reason(family: Family, target: Target) -> str:
    """Why `family` has no base image for the target's architecture; empty where it has one."""
    if target.arch in family.arches:
        return ""
    name = untagged(family.image)[0]
    return f"{family.name} has no base image for {target.arch}: {name} is for " + ", ".join(
        family.arches
    )


def check_managers(requirements: SystemRequirements, target: Target) -> None:
    """Raise SpecError unless all managers are of one Linux family, the target's."""
    asked = {*requirements.packages, *(one.manager for one in requirements.repositories)}
    managers = sorted(asked)
    for manager in managers:
        if manager not in MANAGERS:
            msg = f'package manager "{manager}" not applicable to Linux containers'
            raise SpecError(msg, next_step="use the package manager of a Linux family")
        if MANAGERS[manager] != MANAGERS[managers[0]]:
            names = " ".join(managers)
            msg = f"incompatible package managers: [{names}] require different Linux families"
            raise SpecError(msg, next_step="give each its own step with `when`")
    if managers and not (requirements.repositories or any(requirements.packages.values())):
        msg = f"no packages or repositories found for {managers[0]}"
        raise SpecError(msg, next_step="name at least one package")
    if managers and MANAGERS[managers[0]] != target.family:
        family = MANAGERS[managers[0]]
        msg = f'package manager "{managers[0]}" is for {family}, but the target is {target}'
        raise SpecError(msg, next_step=f"choose a target of {family}")


def _base(reference: str, recorded: Mapping[str, str]) -> tuple[str, str]:
    name, digest = untagged(reference)
    if own := recorded.get(name) or recorded.get(reference):
        return name, own if own.startswith("sha256:") else f"sha256:{own}"
    return reference, digest


def _once(commands: list[str]) -> list[str]:
    return list(dict.fromkeys(commands))


def _check_filled(
    packages: Mapping[str, tuple[str, ...]], requirements: SystemRequirements
) -> None:
    """A placeholder that is left would reach the shell as it stands."""
    values = [name for names in packages.values() for name in names]
    values += requirements.groups
    for one in requirements.repositories:
        values += [one.url, one.suite, *one.components, one.key_url, one.key_sha256, one.ppa]
    for value in values:
        if "{" in value or "}" in value:
            msg = f"{value!r} has a placeholder that nothing fills in"
            raise SpecError(
                msg, blame=Blame.UNSUPPORTED, next_step="give the version with --sandbox-version"
            )
