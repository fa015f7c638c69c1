"""`pytest-sandbox inspect`: what each recipe comes to on each target, without engine or network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from pytest_sandbox.cli.configuration import (
    catalogue_for,
    chosen_targets,
    families_of,
    recipe_files,
    recipe_options,
)
from pytest_sandbox.cli.project import cli_settings
from pytest_sandbox.errors import RecipeError, SandboxError, UsageError
from pytest_sandbox.images.name import image_name
from pytest_sandbox.images.requirements import (
    NOTHING,
    Repository,
    collect_requirements,
    says_nothing,
)
from pytest_sandbox.images.spec import derive_spec, no_base_reason
from pytest_sandbox.limits import PROFILES
from pytest_sandbox.plans.dependencies import dependency_tree, flatten
from pytest_sandbox.plans.resolve import plan_steps
from pytest_sandbox.plans.versions import parse_versions
from pytest_sandbox.recipes.load import load_recipe
from pytest_sandbox.recipes.select import steps_for, unsupported_reason
from pytest_sandbox.targets import LINUX_TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_sandbox.images.requirements import SystemRequirements
    from pytest_sandbox.plans.catalogue import Catalogue
    from pytest_sandbox.plans.model import PlanStep
    from pytest_sandbox.recipes.model import Recipe
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.targets import Target


class LimitsView(msgspec.Struct, frozen=True):
    """The limits of a run: memory in bytes, timeout in seconds."""

    profile: str
    memory: int
    cpus: float
    pids: int
    timeout: float


class System(msgspec.Struct, frozen=True):
    """The part of a line that many recipes share: what the system must be."""

    packages: dict[str, tuple[str, ...]]
    repositories: tuple[Repository, ...]
    base_image: str | None
    image: str | None
    network: str
    limits: LimitsView
    note: str = ""


class Line(msgspec.Struct, frozen=True):
    """One recipe on one target. `supported` is what the recipe says; `note` tells why there is no
    base image for a target that it supports."""

    path: str
    name: str
    target: str
    supported: bool
    reason: str
    steps: list[str]
    packages: dict[str, tuple[str, ...]]
    repositories: tuple[Repository, ...]
    base_image: str | None
    image: str | None
    network: str
    limits: LimitsView
    dependencies: tuple[str, ...]
    missing_dependencies: tuple[str, ...]
    note: str


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """A recipe, or one recipe on one target, that cannot be looked at."""

    path: str
    line: int | None
    key: str
    error: str
    name: str = ""
    target: str = ""


_NO_STEPS: Final[tuple[PlanStep, ...]] = ()


class Inspector:
    """Computes lines; what many recipes share is computed once."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, versions: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._families = families_of(settings)
        self._catalogue = catalogue
        self._versions = versions
        self._digests: dict[str, Mapping[str, str]] = {}
        self._steps: dict[tuple[int, Target], tuple[PlanStep, ...]] = {}
        self._systems: dict[tuple[Target, bytes], System] = {}
        self._recipes: list[Recipe] = []  # keeps them alive: their ids are keys

    def lines(self, recipe: Recipe, targets: Sequence[Target]) -> Iterator[Line | Fault]:
        """A line for each target, in order."""
        self._recipes.append(recipe)
        for target in targets:
            try:
                yield self._line(recipe, target)
            except SandboxError as wrong:
                yield Fault(recipe.path, None, "", wrong.what, recipe.name, str(target))

    def _line(self, recipe: Recipe, target: Target) -> Line:
        tree = dependency_tree(recipe, target, self._catalogue)
        below = flatten(tree.needs) if tree.needs else []
        needs = self._telling_steps(recipe, target)
        for needed in below:
            needs = (*self._telling_steps(needed.recipe, target), *needs)
        wanted = NOTHING
        if needs:
            wanted = collect_requirements(needs, target, verify=recipe.verify)
        system = self._system(wanted, target)
        reason = unsupported_reason(recipe, target)
        return Line(
            path=recipe.path,
            name=recipe.name,
            target=str(target),
            supported=not reason,
            reason=reason,
            steps=[step.action for step in steps_for(recipe, target)],
            packages=system.packages,
            repositories=system.repositories,
            base_image=system.base_image,
            image=system.image,
            network=system.network,
            limits=system.limits,
            dependencies=tuple(needed.recipe.name for needed in below),
            missing_dependencies=tree.missing,
            note=system.note,
        )

    def _telling_steps(self, recipe: Recipe, target: Target) -> tuple[PlanStep, ...]:
        """The plan's steps that say something of the system."""
        key = (id(recipe), target)
        if key not in self._steps:
            found = _NO_STEPS
            if not all(says_nothing(step.action) for step in recipe.steps):
                version = self._versions.get(recipe.name, "")
                found = tuple(
                    step
                    for step in plan_steps(recipe, target, version)
                    if not says_nothing(step.action)
                )
            self._steps[key] = found
        return self._steps[key]

    def _system(self, wanted: SystemRequirements, target: Target) -> System:
        key = (target, b"" if wanted is NOTHING else msgspec.json.encode(wanted))
        if key not in self._systems:
            self._systems[key] = self._derive(wanted, target)
        return self._systems[key]

    def _derive(self, wanted: SystemRequirements, target: Target) -> System:
        limits = self._settings.limits(PROFILES[wanted.profile])
        view = LimitsView(wanted.profile, limits.memory, limits.cpus, limits.pids, limits.timeout)
        network = self._settings.network or ("bridge" if wanted.network else "none")
        if target.os != "linux":
            return System(wanted.packages, wanted.repositories, None, None, network, view)
        plain = wanted.empty and not wanted.network
        family = self._families[target.family]
        note = no_base_reason(family, target)
        if note:  # what the system must have can be said all the same
            family = msgspec.structs.replace(family, arches=(target.arch,))
        spec = derive_spec(
            wanted,
            target,
            families={family.name: family},
            certificates=() if plain else _certificates(),
            base_digests={} if plain else self._base_digests(target.arch),
        )
        if note:
            return System(spec.packages, spec.repositories, None, None, network, view, note)
        image = None if spec.plain else image_name(spec, self._settings.image_prefix)
        return System(spec.packages, spec.repositories, spec.reference, image, network, view)

    def _base_digests(self, arch: str) -> Mapping[str, str]:
        if arch not in self._digests:
            from pytest_sandbox.provision.bases import base_digests

            self._digests[arch] = base_digests(arch)
        return self._digests[arch]


def _certificates() -> tuple[str, ...]:
    from pytest_sandbox.provision.certificates import extra_certificates

    return extra_certificates()


@click.command("inspect")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    paths: tuple[str, ...],
    targets: tuple[str, ...],
    extra: tuple[str, ...],
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what recipes (files, or folders of them) come to on each target.

    All ten Linux targets unless --target names some. Exits with 1 if a recipe has errors. The name
    or id of a sandbox that `run` started shows that sandbox.
    """
    paths = _show_sandboxes(paths, as_json=as_json)
    if not paths:
        return
    settings = cli_settings(**options)
    chosen = chosen_targets(targets, LINUX_TARGETS)
    catalogue = catalogue_for(paths, extra, settings)
    recipes: list[Recipe | Fault] = []
    for path in recipe_files(paths):
        loaded = _load(path)
        if not isinstance(loaded, Fault):
            catalogue.add(loaded)
        recipes.append(loaded)
    inspector = Inspector(settings, catalogue, parse_versions(settings.version))
    show = _json if as_json else _table
    sys.exit(1 if show(_all_lines(inspector, recipes, chosen)) else 0)


def _show_sandboxes(names: Sequence[str], *, as_json: bool) -> tuple[str, ...]:
    """Print the sandboxes among the arguments and give the rest: files and folders are recipes.

    Raises UsageError for what is neither.
    """
    from pytest_sandbox.cli.containers import swept
    from pytest_sandbox.cli.ps import description
    from pytest_sandbox.runtimes.oci.containers.folder import UnknownSandbox

    recipes = []
    for name in names:
        if "/" in name or name.endswith(".toml") or Path(name).exists():
            recipes.append(name)
            continue
        try:
            found = description(swept().find(name))
        except UnknownSandbox:
            msg = f"{name!r} is no recipe file or folder, and no name or id of a sandbox"
            step = "pytest-sandbox ps -a lists the sandboxes"
            raise UsageError(msg, next_step=step) from None
        click.echo(json.dumps(found) if as_json else json.dumps(found, indent=2))
    return tuple(recipes)


def _load(path: Path) -> Recipe | Fault:
    try:
        return load_recipe(path)
    except RecipeError as wrong:
        return Fault(str(path), wrong.line, wrong.key, wrong.what)


def _all_lines(
    inspector: Inspector, recipes: Sequence[Recipe | Fault], targets: Sequence[Target]
) -> Iterator[Line | Fault]:
    for recipe in recipes:
        if isinstance(recipe, Fault):
            yield recipe
        else:
            yield from inspector.lines(recipe, targets)


def _json(lines: Iterator[Line | Fault]) -> int:
    """Print JSON lines; the number of faults."""
    encoder = msgspec.json.Encoder()
    out = bytearray()
    faults = 0
    for line in lines:
        faults += isinstance(line, Fault)
        out += encoder.encode(line)
        out += b"\n"
    click.echo(bytes(out), nl=False)
    return faults


def _table(lines: Iterator[Line | Fault]) -> int:
    """Print a table, then the errors; the number of faults."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pytest_sandbox.errors import printable

    table = Table("recipe", "target", "steps", "packages", "image", "needs")
    faults = []
    for line in lines:
        if isinstance(line, Fault):
            faults.append(line)
            continue
        steps = ", ".join(line.steps) if line.supported else f"unsupported: {line.reason}"
        packages = " ".join(name for names in line.packages.values() for name in names)
        needs = [*line.dependencies, *(f"{name} (not found)" for name in line.missing_dependencies)]
        image = line.image or line.base_image or line.note
        cells = (line.name, line.target, steps, packages, image.partition("@")[0], " ".join(needs))
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
    if table.row_count:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    for fault in faults:
        where = f"{fault.path}:{fault.line}" if fault.line else fault.path
        on = f" on {fault.target}" if fault.target else ""
        click.echo(printable(f"{where}: error{on}: {fault.error}"), err=True)
    return len(faults)
