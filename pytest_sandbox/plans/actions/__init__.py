"""Actions as operations, one module a subject; `COMPILERS` is the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_sandbox.plans.actions import binaries, commands, files, system
from pytest_sandbox.recipes.vocabulary import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_sandbox.plans.actions.context import Reader
    from pytest_sandbox.plans.model import Operation

    Compiler = Callable[[Reader], tuple[Operation, ...]]

COMPILERS: Final[Mapping[str, Compiler]] = {
    **{
        name: system.system_action
        for name, action in ACTIONS.items()
        if action.system and action.manager != "brew"
    },
    "require_system": system.require_system,
    "download_file": files.download_file,
    "extract": files.extract,
    "chmod": files.chmod,
    "install_binaries": binaries.install_binaries,
    "run_command": commands.run_command,
    "set_env": commands.set_env,
}
"""Action -> what turns one of its steps into operations; others are not supported."""

WORKS_ON_FILES: Final = frozenset(
    ("download_file", "extract", "chmod", "install_binaries", "run_command")
)
"""Actions that need a work folder; a tool without any of them has nothing to install from it."""
