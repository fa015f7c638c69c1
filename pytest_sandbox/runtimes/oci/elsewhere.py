"""Systems other than Linux: looked at before anything is imported that only Linux has."""

from __future__ import annotations

import sys

from pytest_sandbox.errors import Blame, RuntimeUnavailable


def need_linux() -> None:
    """Raises RuntimeUnavailable with a way to Linux on every other system."""
    system = sys.platform
    if system.startswith("linux"):
        return
    ways = {
        "darwin": "run pytest in a Linux machine of Lima (limactl start)",
        "win32": "run pytest in WSL2 (wsl --install)",
        "cygwin": "run pytest in WSL2 (wsl --install)",
    }
    way = ways.get(system, "run pytest on a Linux machine")
    msg = f"sandboxes without a daemon need Linux (this is {system})"
    raise RuntimeUnavailable(msg, blame=Blame.HOST, next_step=f"{way}, or use Docker or Podman")
