"""docs/security.md shows every attack, in the order in which they are tried."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_sandbox.runtimes.oci.launchers.attacks import ATTACKS


def test_the_table_of_attacks_is_the_list():
    page = Path(__file__).parents[2] / "docs/security.md"
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]*) \|", page.read_text(), re.MULTILINE)
    assert rows == [(attack.name, attack.what) for attack in ATTACKS]
