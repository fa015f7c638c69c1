"""Sandboxes that `pytest-sandbox run` started, as any process of the user finds them on the disk.

There is no daemon to ask: each has a folder `containers/<id>/` in the store, which its own
supervisor keeps true. See folder.py for what is in it.
"""

from __future__ import annotations

from typing import Final

JOBS: Final = (
    "pytest_sandbox.runtimes.oci.launch",
    "pytest_sandbox.runtimes.oci.containers.ending",
)
"""The modules of jobs that the supervisor of a sandbox needs."""
