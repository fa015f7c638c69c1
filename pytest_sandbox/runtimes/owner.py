"""Who owns what a run leaves behind, and whether that owner still lives.

An owner is boot id + pid namespace + pid + start time: a pid alone is soon somebody else's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.lifetimes import boot_id, is_over, pid_namespace, started
from pytest_sandbox.runtimes.base import Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

LABEL: Final = "org.pytest-sandbox"
"""The label that everything of ours carries; the others hang below it."""
FOREIGN_AGE: Final = 24 * 3600.0
"""What another boot or pid namespace left goes after this many seconds."""


def current_owner(run: str) -> Owner:
    """This process as the owner of what run `run` makes."""
    pid = os.getpid()
    return Owner(run, boot_id(), pid_namespace(), pid, started(pid) or 0)


def owner_is_dead(owner: Owner, created: float, now: float) -> bool:
    """Whether what `owner` made at POSIX time `created` may go."""
    if owner.boot != boot_id() or owner.namespace != pid_namespace():
        return now - created > FOREIGN_AGE
    return is_over(owner.pid, owner.started)


def owner_labels(owner: Owner, created: float) -> dict[str, str]:
    """The labels that say whose something is."""
    return {
        LABEL: "1",
        f"{LABEL}.run": owner.run,
        f"{LABEL}.boot": owner.boot,
        f"{LABEL}.namespace": owner.namespace,
        f"{LABEL}.pid": str(owner.pid),
        f"{LABEL}.started": str(owner.started),
        f"{LABEL}.created": f"{created:.3f}",
    }


def owner_from_labels(labels: Mapping[str, str]) -> tuple[Owner, float] | None:
    """The owner and the POSIX time of creation; None where the labels do not say, or it is not
    ours.
    """
    if labels.get(LABEL) != "1":
        return None
    try:
        owner = Owner(
            labels[f"{LABEL}.run"],
            labels[f"{LABEL}.boot"],
            labels[f"{LABEL}.namespace"],
            int(labels[f"{LABEL}.pid"]),
            int(labels[f"{LABEL}.started"]),
        )
        return owner, float(labels[f"{LABEL}.created"])
    except (KeyError, ValueError):
        return None
