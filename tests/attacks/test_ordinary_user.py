"""The attacks once more on what an ordinary user of this machine starts without a daemon."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.contract.conftest import missing
from tests.contract.test_ordinary_user import ROOT, USER, as_user
from tests.contract.test_ordinary_user import home as home  # a fixture  # noqa: PLC0414

ENGINES = "runc or direct"


def test_the_attacks_are_refused_for_an_ordinary_user(home: Path):
    python = Path(sys.executable)
    if python.is_relative_to(ROOT):
        python = home / "project" / python.relative_to(ROOT)
    if (tried := as_user(home, str(python), "-c", "import pytest")).returncode:
        missing(f"{USER} cannot run {python}: {tried.stdout.strip()[-300:]}")
    done = as_user(
        home, str(python), "-m", "pytest", "tests/attacks", "-k", ENGINES, "--color=no", "-q",
        "-p", "no:cacheprovider",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed[1]) >= 14
