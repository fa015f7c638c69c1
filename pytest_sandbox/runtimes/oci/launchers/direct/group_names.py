"""The names of the cgroups of blanks: they say whose each is, so that what is left can be found."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci import cgroups as groups
from pytest_sandbox.oci.lifetimes import is_over, pid_namespace, started

if TYPE_CHECKING:
    from pytest_sandbox.oci.cgroups import Cgroups

_PREFIX: Final = "ps-blank"
_NAME: Final = re.compile(rf"{_PREFIX}-([a-z0-9]+)-([0-9]+)-([0-9]+)-[0-9a-f]+")


def new_name() -> str:
    """A cgroup's name that says whose it is: this process's parent's, the supervisor's."""
    parent = os.getppid()
    return f"{_PREFIX}-{pid_namespace()}-{parent}-{started(parent)}-{os.urandom(5).hex()}"


def sweep_groups(cgroups: Cgroups) -> None:
    """Remove the groups of blanks, and of sandboxes that were made from them, whose supervisor was
    killed. Nothing lives in them: they die with it.
    """
    for name in cgroups.names():
        match = _NAME.fullmatch(name)
        if match is None or match[1] != pid_namespace():
            continue
        if is_over(int(match[2]), int(match[3])):
            paths = cgroups.paths(name)
            groups.kill(paths)
            groups.remove(paths)
