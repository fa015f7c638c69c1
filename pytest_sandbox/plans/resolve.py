"""Recipe + Target -> Plan: the surviving steps, expanded, with what has to be installed first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, PlanError
from pytest_sandbox.plans.composites import expand_composite, patch_steps
from pytest_sandbox.plans.dependencies import check_size, dependency_tree, flatten
from pytest_sandbox.plans.model import DependencyPlan, Plan, PlanStep, PlatformSpec
from pytest_sandbox.plans.templates import expand_params, plan_variables, wants_version
from pytest_sandbox.plans.versions import check_version, missing_version
from pytest_sandbox.recipes.params import text_of
from pytest_sandbox.recipes.select import steps_for, unsupported_reason
from pytest_sandbox.recipes.vocabulary import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.plans.catalogue import Catalogue
    from pytest_sandbox.plans.dependencies import Needed
    from pytest_sandbox.recipes.model import Recipe, Step
    from pytest_sandbox.targets import Target

_SYSTEM = "apt_install dnf_install pacman_install apk_install zypper_install require_system manual"
_SOURCES = "apt_repo apt_ppa dnf_repo group_add service_enable service_start require_command"
_FILES = "run_command download_file download extract chmod install_binaries set_env"

SUPPORTED: Final = frozenset(f"{_SYSTEM} {_SOURCES} {_FILES}".split())
"""The actions, as recipes write them, that plans/script.py can turn into operations."""

_EXACT = "download_file extract chmod install_binaries set_env set_rpath link_dependencies"
_EXACT_TOO = "install_libraries validate_checksum install_shell_init install_program_files npm_exec"

EVALUABLE: Final = frozenset(f"{_EXACT} {_EXACT_TOO}".split())
"""The actions whose outcome a plan determines (the format's flag `evaluable`)."""


def unsupported_action(action: str) -> PlanError:
    """The error of a step that cannot be carried out yet."""
    return PlanError(
        f"action {action} is not supported yet",
        blame=Blame.UNSUPPORTED,
        next_step="take this recipe out of the run, or wait for the action",
    )


def resolve(
    recipe: Recipe,
    target: Target,
    *,
    catalogue: Catalogue | None = None,
    versions: Mapping[str, str] | None = None,
    need_versions: bool = True,
) -> Plan:
    """The plan of `recipe` for `target`.

    `versions` maps recipe names to versions; one is needed only where a template uses it. Without
    `need_versions` its placeholders stay where none is known (such a plan says what is needed, and
    cannot be carried out). Raises PlanError: blame `unsupported` for a target that the recipe's
    metadata excludes and for a version that nobody gave.
    """
    if reason := unsupported_reason(recipe, target):
        msg = f"{recipe.name} does not support {target}: {reason}"
        raise PlanError(msg, blame=Blame.UNSUPPORTED, next_step="choose another --sandbox-target")
    versions = versions or {}
    tree = dependency_tree(recipe, target, catalogue)
    steps = plan_steps(recipe, target, versions.get(recipe.name, ""))
    dependencies = [_dependency(needed, target, versions) for needed in tree.needs]
    below = flatten(tree.needs)
    check_size(recipe.name, _depth(tree.needs), len(below))
    everything = [steps, *(part.steps for part in _all(dependencies))]
    plan = Plan(
        tool=recipe.name,
        version=check_version(versions.get(recipe.name, ""), recipe.name),
        platform=PlatformSpec(
            os=target.os,
            arch=target.arch,
            linux_family=target.family if _varies([recipe, *(n.recipe for n in below)]) else "",
        ),
        recipe_source=recipe.path,
        deterministic=all(step.deterministic for part in everything for step in part),
        dependencies=dependencies,
        steps=steps,
        verify=recipe.verify,
        recipe_type=recipe.metadata.type,
        binaries=[] if recipe.metadata.is_library else recipe.metadata.binaries or [],
        obstacles=_obstacles(recipe, target, tree.missing, below),
    )
    if need_versions:
        _check_versions(plan)
    return plan


def plan_steps(recipe: Recipe, target: Target, version: str) -> list[PlanStep]:
    """The recipe's own steps on `target`, expanded and filled in."""
    variables = plan_variables(recipe, target, version)
    found: list[PlanStep] = []
    for step in steps_for(recipe, target):
        found += _expanded(step, recipe, variables, version)
    if recipe.patches:
        after = max((i + 1 for i, step in enumerate(found) if step.action == "extract"), default=0)
        found[after:after] = [
            _plan_step(action, params, composite="apply_patch", patch=True)
            for patch in recipe.patches
            for action, params in patch_steps(patch)
        ]
    return found


def _expanded(
    step: Step, recipe: Recipe, variables: Mapping[str, str], version: str
) -> list[PlanStep]:
    params = expand_params(step.params, variables)
    parts = expand_composite(step.action, params, recipe, version)
    if parts is None:
        return [_plan_step(step.action, params, phase=step.phase, source=step.index)]
    return [
        _plan_step(action, found, phase=step.phase, source=step.index, composite=step.action)
        for action, found in parts
    ]


def _plan_step(
    action: str,
    params: dict[str, Any],
    *,
    phase: str = "",
    source: int = 0,
    composite: str = "",
    patch: bool = False,
) -> PlanStep:
    known = ACTIONS.get(action)
    download = action == "download_file"
    size = params.get("size")
    return PlanStep(
        action=action,
        params=params,
        phase=phase,
        evaluable=patch or action in EVALUABLE,
        deterministic=known is not None and known.deterministic,
        url=text_of(params, "url") if download else "",
        checksum=text_of(params, "checksum") if download else "",
        size=size if download and isinstance(size, int) else 0,
        source=source,
        composite=composite,
    )


def _dependency(needed: Needed, target: Target, versions: Mapping[str, str]) -> DependencyPlan:
    recipe = needed.recipe
    version = versions.get(recipe.name) or versions.get(needed.asked) or needed.pinned
    return DependencyPlan(
        tool=recipe.name,
        version=check_version(version, recipe.name),
        dependencies=[_dependency(child, target, versions) for child in needed.needs],
        steps=plan_steps(recipe, target, version),
        verify=recipe.verify,
        recipe_type=recipe.metadata.type,
    )


def _all(dependencies: list[DependencyPlan]) -> list[DependencyPlan]:
    found: list[DependencyPlan] = []
    for dependency in dependencies:
        found += _all(dependency.dependencies)
        found.append(dependency)
    return found


def _depth(needs: tuple[Needed, ...]) -> int:
    return max((1 + _depth(needed.needs) for needed in needs), default=0)


def _varies(recipes: list[Recipe]) -> bool:
    """Whether the family is part of the plan: a manager's step, or packages by manager."""
    own = any(ACTIONS[step.action].family for step in recipes[0].steps)
    return own or any(
        step.action == "require_system"
        and ("packages" in step.params or "primitives" in step.params)
        for recipe in recipes
        for step in recipe.steps
    )


def _obstacles(
    recipe: Recipe, target: Target, missing: tuple[str, ...], below: list[Needed]
) -> list[str]:
    found = [f"{recipe.name} needs {name}, which is in no recipe folder" for name in missing]
    for needed in below:
        if reason := unsupported_reason(needed.recipe, target):
            name = needed.recipe.name
            found.append(f"{recipe.name} needs {name}, which does not support {target}: {reason}")
    return found


def _check_versions(plan: Plan) -> None:
    """Raise for a version that is needed and not known.

    Not for a plan that something else stands in the way of: that is the better thing to say then.
    """
    parts = _all(plan.dependencies)
    steps = [*plan.steps, *(step for part in parts for step in part.steps)]
    if plan.obstacles or any((step.composite or step.action) not in SUPPORTED for step in steps):
        return
    everything: list[Plan | DependencyPlan] = [*parts, plan]
    for part in everything:  # a check that wants one is for whoever runs it to say
        if part.version:
            continue
        for step in part.steps:
            if wants_version(step.params):
                raise missing_version(part.tool, f"step {step.source} ({step.action})")
