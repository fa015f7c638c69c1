"""SIGKILL to a launcher at any moment leaves no process of a sandbox.

PYTEST_SANDBOX_TEST_KILLS is how often: few times by default, 300 to be sure.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.conftest import OURS

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("PYTEST_SANDBOX_TEST_KILLS") or 0)


@pytest.mark.parametrize("launcher", sorted(OURS), indirect=True, scope="session")
def test_no_process_survives_its_launcher(launcher: str, image: str):
    """Not of others: their sandboxes are started by a daemon."""
    rounds = ROUNDS or (8 if launcher == "direct" else 3)
    seed = random.randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.kills", launcher, image, str(rounds), str(seed)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60 + 10 * rounds,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["survivors"] == [], f"seed {seed}"
    assert told["met"] > 0, "there were sandboxes to survive"
