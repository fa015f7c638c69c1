"""What untrusted code in a sandbox would try: one list for the self-test of a launcher and for
tests/attacks, where it is held against every engine.
"""

from __future__ import annotations

from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside
from pytest_sandbox.runtimes.oci.launchers.attacks.running import ATTACKS, attempt, run_all

__all__ = ["ATTACKS", "Attack", "Outside", "attempt", "run_all"]
