"""The attacks once more on what an ordinary user of this machine starts without a daemon."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.contract.conftest import missing
from tests.contract.test_ordinary_user import ROOT, USER, as_user
from tests.contract.test_ordinary_user import home as home  # a fixture  # noqa: PLC0414

ENGINES = "direct or (runc and not bomb and not kills)"


def own_interpreter(home: Path) -> Path:
    """An interpreter that belongs to the user, as those of uv and pyenv do: the hardest case, since
    root of the user's sandboxes owns it, too.
    """
    base = getattr(sys, "_base_executable", sys.executable)
    words = [base, "-m", "venv", "--copies", "--without-pip", str(home / "own")]
    subprocess.run(words, check=True, capture_output=True)
    ours = Path(sysconfig.get_path("purelib"))
    if ours.is_relative_to(ROOT):
        ours = home / "project" / ours.relative_to(ROOT)
    packages = next((home / "own/lib").glob("python*/site-packages"))
    (packages / "tests.pth").write_text(f"{ours}\n")
    account = pwd.getpwnam(USER)
    for path in (home / "own").rglob("*"):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return home / "own/bin/python"


def test_the_attacks_are_refused_for_an_ordinary_user(home: Path):
    python = own_interpreter(home)
    look = "import os, pytest, sys; print(os.stat(sys.executable).st_uid == os.geteuid())"
    if (tried := as_user(home, str(python), "-c", look)).stdout != "True\n":
        missing(f"{USER} cannot run {python}: {tried.stdout.strip()[-300:]}")
    done = as_user(
        home, str(python), "-m", "pytest", "tests/attacks", "-k", ENGINES, "--color=no", "-q",
        "-p", "no:cacheprovider",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed[1]) >= 20
