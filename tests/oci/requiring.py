"""What these tests need of a machine: programs that can be installed, and an ordinary user.

Where PYTEST_SANDBOX_REQUIRE is set, as in CI, a missing one is a failure. What a machine cannot do
at all (its kernel, its control groups, who runs the tests) stays a skip, written in the test.
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

USER = os.environ.get("PYTEST_SANDBOX_TEST_USER") or "tester"
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def missing(reason: str) -> NoReturn:
    """Skip, or fail where everything is required."""
    if os.environ.get("PYTEST_SANDBOX_REQUIRE"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str = "") -> str:
    """The path of a program; missing where it is not installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        missing(f"{name} is not installed; next: apt-get install {package or name}")
    return found


def static_busybox() -> Path:
    """The path of a busybox that needs no libraries."""
    found = Path(program("busybox", "busybox-static"))
    if b"ld-linux" in found.read_bytes()[:4096]:
        missing(f"{found} is not static; next: apt-get install busybox-static")
    return found


def fuse_overlayfs() -> None:
    """Missing without the program; a machine that keeps /dev/fuse to itself is skipped."""
    program("fuse-overlayfs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse may not be used here")


def ordinary_user() -> pwd.struct_passwd:
    """The account to try things as: whoever runs the tests, or the user of the tests for root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    program("runuser", "util-linux")
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        missing(f"there is no user {USER}; next: useradd -m {USER}, or PYTEST_SANDBOX_TEST_USER")
