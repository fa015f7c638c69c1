"""Sandboxes whose process 1 is the Python: where files of memory cannot be executed, and on
machines that the program has no code for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from tests.oci.builds.conftest import TARGET, busybox, remove, tiny

__all__ = ["busybox"]

SETTING = Path("/proc/sys/vm/memfd_noexec")
SCRIPT = Path(__file__).with_name("interpreted.py")


@pytest.fixture(scope="module")
def place(busybox, tmp_path_factory):
    if os.geteuid() != 0 or not SETTING.exists():
        pytest.skip("only root can forbid it, from Linux 6.3 on")
    found = tmp_path_factory.mktemp("interpreted")
    runtime = OciRuntime(folder=found / "oci")
    try:
        runtime.info()
    except SandboxError as missing:
        pytest.skip(str(missing))
    runtime.load_rootfs(tiny(busybox), "base:1", TARGET, {})
    yield found
    remove(runtime, found, "oci")


def test_commands_and_ends_are_the_same(place):
    # The setting is a pid namespace's own: nothing else on this machine has it.
    forbid = f'echo 2 >{SETTING}; exec "$@"'
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", forbid, "sh"]
    ran = subprocess.run(
        [*words, sys.executable, str(SCRIPT), str(place / "oci")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "program": False,
        "out": ["x", "0"],
        "status": 7,
        "missing": 127,
        "input": "through",
        "long": "400",
        "user": "12",
        "first": "sandbox-init",
        "score": "900",
        "capabilities": "00000000a80425fb",
        "folder": True,
        "unknown": True,
        "late": True,
        "left": 0,
        "neighbour": "here\n",
        "ended": True,
    }
