"""A sandbox-like process with a network, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.oci.requiring import ordinary_user, program

DRIVER = Path(__file__).parent / "driver.py"
ROOT = DRIVER.parents[3]


class Box:
    """A running driver. `told` is what attach() returned (or `error`)."""

    def __init__(self, process):
        self.process = process
        self.told = json.loads(self._line())

    def _line(self):
        line = self.process.stdout.readline()
        assert line, "the driver died"
        return line

    def run(self, code, *, stays=False):
        """Run Python code inside; its output (of a server that stays: the first line)."""
        self.process.stdin.write(json.dumps({"code": code, "stays": stays}) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def end(self):
        """End the sandbox; the processes that are left after it."""
        self.process.stdin.write("!end\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def place(self, index=0):
        port = self.told["ports"][index]
        return port["address"], port["host"]


def as_user(user):
    """The words before a command that make it another user's; missing where that cannot be."""
    if user == "root":
        if os.geteuid() != 0:
            pytest.skip("not root")
        return []
    if os.geteuid() != 0:
        return []  # we are an ordinary user ourselves
    return ["runuser", "-u", ordinary_user().pw_name, "--"]


@contextmanager
def attached(user, *, stacks, ports=(), before=(), **more):
    if user != "root":
        program("newuidmap", "uidmap")
    told = {"stacks": list(stacks), "ports": [asdict(port) for port in ports], **more}
    process = subprocess.Popen(
        [*before, *as_user(user), sys.executable, str(DRIVER), json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        text=True,
    )
    try:
        yield Box(process)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def place():
    """A folder that the ordinary user can read (pytest's own are 0700)."""
    found = Path(tempfile.mkdtemp(prefix="psb-network-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


@pytest.fixture(params=["root", "user"])
def user(request):
    return request.param


@pytest.fixture(scope="session")
def faults():
    """Why a stack cannot be used on this machine, by its name (pasta of 2023 may lose data)."""
    found = {}
    for name in ("slirp4netns", "pasta"):
        with attached("root" if os.geteuid() == 0 else "user", stacks=[name]) as made:
            found[name] = made.told.get("error", {}).get("what", "")
    return found


@pytest.fixture(params=["slirp4netns", "pasta"])
def stack(request, faults):
    program(request.param, {"pasta": "passt"}.get(request.param, ""))
    if "loses data" in faults[request.param]:
        pytest.skip(faults[request.param])
    assert faults[request.param] == ""
    return request.param


@pytest.fixture
def box(user, stack):
    with attached(user, stacks=[stack]) as made:
        yield made


@pytest.fixture(scope="session")
def host_address():
    """An address of this host that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this host has no network at all")
        address = sock.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this host has no address but its loopback")
    return address
