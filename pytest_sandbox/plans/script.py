"""Plan -> operations: what is done inside a sandbox, in order. Nothing of a recipe reaches a shell
but run_command's own text: fixed scripts take the rest as positional arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, PlanError
from pytest_sandbox.plans.actions import COMPILERS, WORKS_ON_FILES
from pytest_sandbox.plans.actions.commands import variables
from pytest_sandbox.plans.actions.context import Context, Reader
from pytest_sandbox.plans.composites import COMPOSITES
from pytest_sandbox.plans.dependencies import check_size
from pytest_sandbox.plans.layout import CURRENT, base_environment, install_dir, layout_of
from pytest_sandbox.plans.model import Command, StepProgram
from pytest_sandbox.plans.resolve import SUPPORTED, unsupported_action
from pytest_sandbox.recipes.params import text_of
from pytest_sandbox.recipes.require_system import RequireSystemError, read_params
from pytest_sandbox.recipes.vocabulary import ACTIONS
from pytest_sandbox.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.plans.model import DependencyPlan, Plan, PlanStep

__all__ = ["compile_plan", "install_dir", "plan_target", "verify_environment"]

_PREPARE: Final = 'rm -rf -- "$1" && mkdir -p -- "$1/.install"'

_FINISH: Final = """set -eu
work=$1 target=$2 current=$3 fallback=$4; shift 4
rm -rf -- "$target"
mkdir -p -- "$target" "$current"
cp -a -- "$work/.install/." "$target/"
cd /
rm -rf -- "$work"
if [ -n "$fallback" ] && [ -f "$target/$fallback" ]; then set -- "$@" "$fallback"; fi
for path do
  if [ ! -e "$target/$path" ]; then echo "$path was not installed" >&2; exit 66; fi
  ln -sfn -- "$target/$path" "$current/${path##*/}"
done
"""
"""WORK TARGET CURRENT FALLBACK COMMAND...: put the staging folder into place, link commands."""


def compile_plan(plan: Plan) -> list[StepProgram]:
    """The steps of the plan and of its dependencies (those first), as operations.

    Raises PlanError: blame `unsupported` for an action that cannot be carried out yet, a plan for
    another operating system, or a dependency that is not there; else blame `recipe`.
    """
    target = plan_target(plan)
    parts = list(_in_order(plan.dependencies, set()))
    check_size(plan.tool, _depth(plan.dependencies), len(parts))
    own_first: list[Plan | DependencyPlan] = [plan, *parts]
    for part in own_first:
        for step in part.steps:
            _check_action(step)
    if plan.obstacles:
        next_step = "add the recipe's folder to the run, or take this recipe out of it"
        raise PlanError(plan.obstacles[0], blame=Blame.UNSUPPORTED, next_step=next_step)
    programs: list[StepProgram] = []
    for dependency in parts:
        programs += _compile(dependency, target, [])
    return programs + _compile(plan, target, plan.binaries)


def plan_target(plan: Plan) -> Target:
    """The plan's platform; its family is empty where the plan is the same for all.

    Raises PlanError for a platform that is no Linux.
    """
    if plan.platform.os != "linux":
        msg = f"the plan of {plan.tool} is for {plan.platform.os}; sandboxes are Linux"
        raise PlanError(msg, blame=Blame.UNSUPPORTED, next_step="make a plan for a Linux target")
    return Target(plan.platform.os, plan.platform.arch, plan.platform.linux_family)


def verify_environment(plan: Plan) -> dict[str, str]:
    """What the checks of a plan find in their environment: PATH with the installed commands, and
    the variables of its set_env steps."""
    found = base_environment()
    context = Context(layout_of(plan), plan_target(plan))
    for number, step in enumerate(plan.steps, 1):
        if step.action == "set_env":
            reader = Reader(step, context, _label(plan, step, number))
            found.update(variables(reader))
    return found


def _in_order(dependencies: list[DependencyPlan], seen: set[str]) -> Iterator[DependencyPlan]:
    """Depth first, siblings by name, children before parents; each tool and version once."""
    for part in sorted(dependencies, key=lambda part: part.tool):
        yield from _in_order(part.dependencies, seen)
        name = f"{part.tool}@{part.version}"
        if name not in seen:
            seen.add(name)
            yield part


def installation_order(plan: Plan) -> list[str]:
    """`tool@version` of every dependency in the order in which they are installed."""
    return [f"{part.tool}@{part.version}" for part in _in_order(plan.dependencies, set())]


def _depth(dependencies: list[DependencyPlan]) -> int:
    return max((1 + _depth(part.dependencies) for part in dependencies), default=0)


def _check_action(step: PlanStep) -> None:
    written = step.composite or step.action
    if written in ACTIONS and written not in SUPPORTED:
        if not step.composite and written in COMPOSITES:
            msg = f"a plan cannot hold the composite action {written}"
            raise PlanError(msg, next_step="write it again with pytest-sandbox plan")
        raise unsupported_action(written)
    if step.action == "download":
        msg = "a plan cannot hold the composite action download: it has no checksum"
        raise PlanError(msg, next_step="write it as download_file with a checksum")
    if step.action not in COMPILERS:
        if step.action in ACTIONS:
            raise unsupported_action(step.action)
        msg = f"unknown action {step.action!r}"
        raise PlanError(msg, next_step="correct the plan's action")


def _compile(part: Plan | DependencyPlan, target: Target, binaries: list[str]) -> list[StepProgram]:
    layout = layout_of(part)
    context = Context(layout, target, guidance=_guidance(part.steps))
    before: list[StepProgram] = []
    after: list[StepProgram] = []
    for number, step in enumerate(part.steps, 1):
        label = _label(part, step, number)
        reader = Reader(step, context, label)
        operations = COMPILERS[step.action](reader)
        late = (step.phase or ACTIONS[step.action].phase) == "post-install"
        (after if late else before).append(
            StepProgram(tool=part.tool, label=label, action=step.action, operations=operations)
        )
    if any(step.action in WORKS_ON_FILES for step in part.steps):
        prepare = Command(argv=("/bin/sh", "-c", _PREPARE, "prepare", layout.work), cwd="/")
        before.insert(0, _own(part.tool, "prepare", prepare))
        reader = Reader(part.steps[0], context, f"{part.tool}: metadata")
        commands = [*context.commands, *(reader.relative(path, "binaries") for path in binaries)]
        commands = [] if layout.library else list(dict.fromkeys(commands))
        fallback = "" if layout.library or commands else f"bin/{part.tool}"
        words = (layout.work, layout.install_dir, CURRENT, fallback, *commands)
        finish = Command(argv=("/bin/sh", "-c", _FINISH, "finish", *words), cwd="/")
        before.append(_own(part.tool, "finish", finish))
    return before + after


def _own(tool: str, name: str, command: Command) -> StepProgram:
    return StepProgram(tool=tool, label=f"{tool}: {name}", action=name, operations=(command,))


def _label(part: Plan | DependencyPlan, step: PlanStep, number: int) -> str:
    return f"{part.tool}: step {step.source or number} ({step.composite or step.action})"


def _guidance(steps: list[PlanStep]) -> str:
    """The texts of a tool's `manual` steps, those in require_system too."""
    texts = []
    for step in steps:
        if step.action == "manual":
            texts.append(text_of(step.params, "text"))
        elif step.action == "require_system":
            try:
                texts.append(read_params(step.params).guidance)
            except RequireSystemError:  # reported when the step itself is compiled
                continue
    return "\n".join(dict.fromkeys(text for text in texts if text))
