"""The supervisor's process is made before anything else is imported: the two run side by side."""

from __future__ import annotations

from contextlib import suppress

from pytest_sandbox.oci.supervisor.spawn import spawn_ahead

_JOBS = ("pytest_sandbox.runtimes.oci.launch",)


def begin() -> None:
    """Make it; what fails here fails again, and is told, when it is needed."""
    with suppress(OSError):
        spawn_ahead(_JOBS)
