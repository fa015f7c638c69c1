"""Plan -> SystemRequirements: what a system must have before the plan's steps run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from pytest_sandbox.errors import PlanError
from pytest_sandbox.recipes.grammar import GrammarError, check_params
from pytest_sandbox.recipes.params import strings_of, text_of
from pytest_sandbox.recipes.require_system import RequireSystemError, read_params
from pytest_sandbox.recipes.vocabulary import ACTIONS
from pytest_sandbox.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pytest_sandbox.plans.model import DependencyPlan, Plan
    from pytest_sandbox.recipes.model import Verify

Mode = Literal["none", "network", "build"]

BUILDS: Final = frozenset(
    ("configure_make", "cmake_build", "meson_build", "cargo_build", "cargo_install", "cpan_install")
)
"""Actions that call a compiler inside the sandbox."""

BIG: Final = frozenset((*BUILDS, "go_build", "go_install"))
"""Actions that need the profile `build` whatever they need of the network."""

BY_HOST: Final = frozenset(("download_file", "homebrew"))
"""Actions whose downloads the host makes; like system packages, which the image holds already, they
are no reason for a network inside the sandbox."""


_READS: Final = re.compile(r"/usr/share/(?:doc|man|info|locale|groff|lintian)\b|\bman -|\bmandb\b")
"""A check that looks at documentation."""


class Repository(msgspec.Struct, frozen=True, kw_only=True, order=True, omit_defaults=True):
    """A package source. `kind` is `repo` or `ppa`; `suite` and `components` are apt's."""

    manager: str
    kind: str
    url: str = ""
    suite: str = ""
    components: tuple[str, ...] = ()
    key_url: str = ""
    key_sha256: str = ""
    ppa: str = ""


class SystemRequirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan needs of its system, sorted and without duplicates.

    `network` says that a step reaches out from inside the sandbox, `profile` which limits fit, and
    `infrastructure` whose packages a base has to have for that. `documentation` says that the
    packages' documentation and translations are looked at.
    """

    packages: dict[str, tuple[str, ...]] = {}
    repositories: tuple[Repository, ...] = ()
    groups: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    network: bool = False
    profile: str = "default"
    infrastructure: Mode = "none"
    documentation: bool = False

    @property
    def empty(self) -> bool:
        """Whether the plain base will do."""
        return (
            not self.packages
            and not self.repositories
            and not self.groups
            and self.infrastructure == "none"
        )


NOTHING: Final = SystemRequirements()


def says_nothing(action: str) -> bool:
    """Whether a step of this action, as a recipe writes it, never adds to the requirements."""
    known = ACTIONS.get(action)
    return known is None or not (
        known.system
        or action == "require_system"
        or action in BIG
        or (known.network and action not in BY_HOST)
    )


def merged(parts: Iterable[SystemRequirements]) -> SystemRequirements:
    """The union of several plans' needs: whatever any of them needs, each once."""
    together = _Collected()
    modes: set[Mode] = set()
    profiles: set[str] = set()
    for part in parts:
        for manager, names in part.packages.items():
            together.packages.setdefault(manager, set()).update(names)
        together.repositories.update(part.repositories)
        together.groups.update(part.groups)
        together.services.update(part.services)
        together.commands.update(part.commands)
        together.network = together.network or part.network
        together.documentation = together.documentation or part.documentation
        modes.add(part.infrastructure)
        profiles.add(part.profile)
    together.builds, together.reaches = "build" in modes, "network" in modes
    together.big = "build" in profiles
    return together.result()


class _Step(Protocol):
    @property
    def action(self) -> str: ...

    @property
    def params(self) -> dict[str, Any]: ...


def requirements_of(plan: Plan, target: Target | None = None) -> SystemRequirements:
    """The needs of a plan, those of its dependencies first. `target` may name the family where the
    plan itself does not. Raises PlanError for a name that its grammar refuses."""
    if target is None:
        platform = plan.platform
        target = Target(platform.os, platform.arch, platform.linux_family)
    return collect_requirements(
        (*_below(plan.dependencies), *plan.steps), target, verify=plan.verify
    )


def _below(dependencies: list[DependencyPlan]) -> Iterator[_Step]:
    for part in dependencies:
        yield from _below(part.dependencies)
        yield from part.steps


def collect_requirements(
    steps: Iterable[_Step], target: Target, *, verify: Verify | None = None
) -> SystemRequirements:
    """The needs of some steps that are filtered for `target` already, and of the check."""
    found = _Collected()
    found.documentation = verify is not None and bool(_READS.search(repr(verify)))
    for step in steps:
        known = ACTIONS.get(step.action)
        if known is None:
            continue
        if step.action == "require_system":
            _of_require_system(step.params, target, found)
        elif known.system:
            _of_system(step.action, step.params, found)
        else:
            if known.network and step.action not in BY_HOST:
                found.network = True
                # what a recipe's own command needs, the recipe has to say
                found.reaches = found.reaches or step.action != "run_command"
            found.builds = found.builds or step.action in BUILDS
            found.big = found.big or step.action in BIG
    return found.result()


class _Collected:
    def __init__(self) -> None:
        self.packages: dict[str, set[str]] = {}
        self.repositories: set[Repository] = set()
        self.groups: set[str] = set()
        self.services: set[str] = set()
        self.commands: set[str] = set()
        self.network = self.reaches = self.builds = self.big = self.documentation = False

    def result(self) -> SystemRequirements:
        mode: Mode = "build" if self.builds else "network" if self.reaches else "none"
        nothing = not (
            self.packages or self.repositories or self.groups or self.services or self.commands
        )
        if nothing and not self.network and not self.big:
            return NOTHING
        return SystemRequirements(
            packages={
                manager: tuple(sorted(names)) for manager, names in sorted(self.packages.items())
            },
            repositories=tuple(sorted(self.repositories)),
            groups=tuple(sorted(self.groups)),
            services=tuple(sorted(self.services)),
            commands=tuple(sorted(self.commands)),
            network=self.network,
            profile="build" if self.network or self.big else "default",
            infrastructure=mode,
            documentation=self.documentation,
        )


def _of_require_system(params: Mapping[str, Any], target: Target, found: _Collected) -> None:
    try:
        wanted = read_params(params)
    except RequireSystemError as wrong:
        msg = f"require_system: {'.'.join(map(str, wrong.where))}: {wrong}"
        raise PlanError(msg, next_step="correct the recipe") from None
    if wanted.command:
        found.commands.add(wanted.command)
    for one in wanted.actions_for(target):
        _of_system(one.action, one.params, found)


def _of_system(action: str, params: Mapping[str, Any], found: _Collected) -> None:
    try:
        check_params(action, params)
    except GrammarError as wrong:
        msg = f"{action}: {'.'.join(map(str, wrong.where))}: {wrong}"
        raise PlanError(msg, next_step="correct the recipe") from None
    manager = ACTIONS[action].manager
    if action in {"apt_repo", "dnf_repo"}:
        found.repositories.add(_repository(manager, params, action))
    elif action == "apt_ppa":
        ppa = _needed(params, "ppa", action)
        found.repositories.add(Repository(manager=manager, kind="ppa", ppa=ppa))
    elif manager:
        names = strings_of(params, "packages")
        if not names:
            msg = f"{action}: packages: expected a list of names, got {params.get('packages')!r}"
            raise PlanError(msg, next_step="correct the recipe")
        found.packages.setdefault(manager, set()).update(names)
    elif action == "group_add":
        found.groups.add(_needed(params, "group", action))
    elif action in {"service_enable", "service_start"}:
        found.services.add(_needed(params, "service", action))
    elif action == "require_command":
        found.commands.add(_needed(params, "command", action))


def _repository(manager: str, params: Mapping[str, Any], action: str) -> Repository:
    url, *rest = _needed(params, "url", action).split()
    suite = text_of(params, "suite") or (rest[0] if rest else "")
    return Repository(
        manager=manager,
        kind="repo",
        url=url,
        suite=suite,
        components=strings_of(params, "components") or tuple(rest[1:]),
        key_url=_needed(params, "key_url", action),
        key_sha256=_needed(params, "key_sha256", action).lower(),
    )


def _needed(params: Mapping[str, Any], key: str, action: str) -> str:
    if not (found := text_of(params, key)):
        msg = f"{action}: {key}: a string is required"
        raise PlanError(msg, next_step="correct the recipe")
    return found
