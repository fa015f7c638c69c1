"""The suite once more without a daemon and without root: as an ordinary user of this machine."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contract.conftest import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
USER = os.environ.get("PYTEST_SANDBOX_TEST_USER", "tester")
_ENTER = 'mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of that user's own, for bases and sandboxes."""
    if os.geteuid() != 0:
        pytest.skip("this run is an ordinary user's: oci-shell and oci-direct show it already")
    try:
        account = pwd.getpwnam(USER)
    except KeyError:
        missing(f"there is no user {USER}; next: useradd -m {USER}, or PYTEST_SANDBOX_TEST_USER")
    folder = Path(tempfile.mkdtemp(prefix="pytest-sandbox-user-"))
    try:
        for name in ("project", "data", "cache", "tmp"):
            (folder / name).mkdir()
            os.chown(folder / name, account.pw_uid, account.pw_gid)
        folder.chmod(0o711)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_user(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project, which may lie where that user cannot walk to."""
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("PYTEST_", "DOCKER_", "XDG_", "PYTHON"))
        and name not in {"HOME", "TMPDIR"}
    }
    env = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_SANDBOX_REQUIRE": "1",
        "PYTEST_SANDBOX_DATA": str(home / "data"),
        "PYTEST_SANDBOX_CACHE": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
        "HOME": pwd.getpwnam(USER).pw_dir,
    }
    project = str(home / "project")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(ROOT), project,
         "runuser", "-u", USER, "--", *command],
        env=kept | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=1500,
    )  # fmt: skip


def test_the_suite_is_green_for_an_ordinary_user(home: Path):
    python = Path(sys.executable)
    if python.is_relative_to(ROOT):
        python = home / "project" / python.relative_to(ROOT)
    tried = as_user(home, str(python), "-c", "import os, pytest; print(os.geteuid())")
    if tried.returncode != 0:
        missing(f"{USER} cannot run {python}: {tried.stdout.strip()[-300:]}")
    assert int(tried.stdout) == pwd.getpwnam(USER).pw_uid != 0
    done = as_user(
        home, str(python), "-m", "pytest", "tests/contract", "-k", "oci-shell or oci-direct",
        "-p", "no:cacheprovider", "--color=no", "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed[1]) > 200
    # No process, and no file but the store and the notes of what was made.
    assert not [pid for pid in processes() if str(home) in pid]
    assert list((home / "data/oci/sandboxes").iterdir()) == []
    assert list((home / "data/oci/owners").iterdir()) == []


def processes() -> Iterator[str]:
    """What every process of that user has for its environment and command."""
    uid = pwd.getpwnam(USER).pw_uid
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == uid:
                yield (folder / "environ").read_bytes().decode(errors="replace")
                yield (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
