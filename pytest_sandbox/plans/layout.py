"""Where things lie inside a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import PlanError
from pytest_sandbox.plans.model import HOME, TOOLS_HOME, WORK
from pytest_sandbox.plans.versions import UNVERSIONED, check_version
from pytest_sandbox.recipes.grammar import RECIPE_NAME

if TYPE_CHECKING:
    from pytest_sandbox.plans.model import DependencyPlan, Plan

CURRENT: Final = f"{TOOLS_HOME}/tools/current"
"""Holds a symlink for each installed command."""

SEARCH_PATH: Final = (
    f"{CURRENT}:{TOOLS_HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)
"""PATH of every command in a sandbox."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one tool: `work` is fresh, `staging` in it becomes `install_dir`."""

    tool: str
    version: str
    library: bool

    @property
    def work(self) -> str:
        """Where the recipe's steps work."""
        return f"{WORK}/{self.tool}"

    @property
    def staging(self) -> str:
        """What steps install into; `{install_dir}` in a step."""
        return f"{self.work}/.install"

    @property
    def install_dir(self) -> str:
        """Where the tool lies in the end; `{install_dir}` in a check and in set_env."""
        kind = "libs" if self.library else "tools"
        return f"{TOOLS_HOME}/{kind}/{self.tool}-{self.version or UNVERSIONED}"


def layout_of(plan: Plan | DependencyPlan) -> Layout:
    """The folders of a plan's tool. Raises PlanError for a name or version that is no path part."""
    if not RECIPE_NAME.fullmatch(plan.tool) or ".." in plan.tool:
        msg = f"tool {plan.tool!r} is no name: letters, digits and . _ + @ - are allowed"
        raise PlanError(msg, next_step="rename the tool in the plan")
    version = check_version(plan.version, plan.tool)
    return Layout(plan.tool, version, plan.recipe_type == "library")


def install_dir(plan: Plan | DependencyPlan) -> str:
    """Where the tool of `plan` lies inside a sandbox once it is installed."""
    return layout_of(plan).install_dir


def base_environment() -> dict[str, str]:
    """What every command of a plan finds in its environment."""
    return {"HOME": HOME, "TSUKU_HOME": TOOLS_HOME, "PATH": SEARCH_PATH}
