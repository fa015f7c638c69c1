"""A small process that does what needs the sandboxes' ids and mounts, and reaps sandboxes.

No daemon: it starts with the first job of its client and ends with it.
"""

from __future__ import annotations

from pytest_sandbox.oci.supervisor.client import Channel, Supervisor
from pytest_sandbox.oci.supervisor.jobs import Call, JobFailed

__all__ = ["Call", "Channel", "JobFailed", "Supervisor"]
