"""Systems that outlive a run, because somebody wants to look into them: images
`tsuku/sandbox-kept:<id>`.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_sandbox.runtimes.base import System

KEPT: Final = "tsuku/sandbox-kept"


def keep(system: System, env: dict[str, str] | None = None, cwd: str = "/") -> str:
    """Keep the files of a system as they are now; the id for `pytest-sandbox shell`.

    Labels carry what the shell needs to look like the run: environment, folder and target.
    """
    identity = secrets.token_hex(4)
    system.snapshot(
        name=f"{KEPT}:{identity}",
        labels={
            "org.pytest-sandbox.kept": "1",
            "org.pytest-sandbox.env": json.dumps(
                {**system.spec.env, **(env or {})}, sort_keys=True
            ),
            "org.pytest-sandbox.cwd": cwd,
            "org.pytest-sandbox.target": str(system.spec.target),
        },
    )
    return identity
