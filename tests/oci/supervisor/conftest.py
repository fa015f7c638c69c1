"""Clients: processes of their own, so that they can be killed and can fork."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sandbox.oci.ids import NoIds, find_ids

ROOT = Path(__file__).parents[3]
_BEGINNING = """
import json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path
from tests.oci.supervisor import jobs
sys.modules["pytest_sandbox.jobs_of_tests"] = jobs
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.supervisor import Supervisor
from pytest_sandbox.oci.supervisor.spawn import fork
JOB = "pytest_sandbox.jobs_of_tests:"
def supervisor(**more):
    keeper = Supervisor(find_ids, **more)
    keeper.spawned = fork()
    return keeper
def tell(**values):
    print(json.dumps(values), flush=True)
def messages(channel):
    found = []
    while (received := channel.receive(20)) is not None:
        found.append(received[0])
        received[0].pop("cpu", None)
        if "gone" in received[0]:
            break
    return found
"""


class Client:
    """A process that runs code, and tells what it found line by line."""

    def __init__(self, code, words=()):
        self.process = subprocess.Popen(
            [*words, sys.executable, "-c", _BEGINNING + code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self):
        line = self.process.stdout.readline()
        assert line, "the client ended without a word"
        return json.loads(line)

    def end(self):
        """Let it go on where it waits for a line, and end."""
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


@pytest.fixture(autouse=True)
def _ids():
    try:
        find_ids()
    except NoIds as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def client():
    """Start a client with some code."""
    made = []

    def start(code, words=()):
        made.append(Client(code, words))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()
        one.process.stdin.close()
        one.process.stdout.close()


@pytest.fixture
def told(client):
    """Run code in a client to its end; what it told last."""

    def run(code, words=()):
        process = client(code, words).process
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return json.loads(out.splitlines()[-1])

    return run


def alive(pid):
    """Whether a process is there, and more than a zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return text.rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


def soon(condition, seconds=10.0):
    """Whether a condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def mounted(place):
    """The processes in whose namespaces something is mounted at, or below, a place."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f" {place}" in (process / "mountinfo").read_text(errors="replace"):
                found.append(process.name)
    return found
