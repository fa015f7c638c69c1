"""Rooms of supervisors: another process sweeps them only when their supervisor is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_sandbox.oci.ids import NoIds, find_ids
from pytest_sandbox.oci.lifetimes import pid_namespace
from pytest_sandbox.oci.supervisor import Supervisor
from pytest_sandbox.oci.supervisor.rooms import PREFIX
from pytest_sandbox.oci.waiting import ended

ROOT = Path(__file__).parents[2]
_SWEEP = "from pytest_sandbox.oci.supervisor.rooms import sweep_rooms; sweep_rooms()"
_JOB = "pytest_sandbox.oci.unpacking_jobs:ready"
_CLIENT = """
import socket, sys
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.lifetimes import pid_namespace
from pytest_sandbox.oci.supervisor import Supervisor
from pytest_sandbox.oci.supervisor.rooms import PREFIX
supervisor = Supervisor(find_ids, lasting=sys.argv[1] == "lasting")
supervisor.start()
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[2])
listener.listen()
supervisor.listen(listener)
print(supervisor.pid, supervisor.room, flush=True)
sys.stdin.read()
"""


def python(*words, **options):
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, text=True, **options)


def sweep():
    """Another process cleans up."""
    with python("-c", _SWEEP) as process:
        assert process.wait(60) == 0


def is_mounted(pid, room):
    """Whether that process sees its own file system over the room."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return any(line.split()[4] == room and " - tmpfs " in line for line in lines)


def end(pid):
    """Kill a supervisor that may not be our child, and wait for its end."""
    try:
        os.kill(pid, signal.SIGKILL)
        assert ended(pid, 20)
    except ProcessLookupError:
        pass


@pytest.fixture
def begin():
    """Starts a client of a supervisor: its process, the supervisor's pid, room and socket."""
    try:
        find_ids()
    except NoIds as missing:
        pytest.skip(missing.what)
    begun = []

    @contextmanager
    def client(kind):
        with tempfile.TemporaryDirectory(prefix="psb-") as folder:
            way = f"{folder}/s"
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            with python("-c", _CLIENT, kind, way, **pipes) as process:
                pid, room = process.stdout.readline().split()
                begun.append((int(pid), Path(room)))
                try:
                    yield process, int(pid), room, way
                finally:
                    process.kill()

    yield client
    for pid, room in begun:
        end(pid)
        if room.exists():
            room.rmdir()


@pytest.mark.parametrize("kind", ["own", "lasting"])
def test_the_room_of_a_living_supervisor_stays(begin, kind):
    with begin(kind) as (_, pid, room, _way):
        assert is_mounted(pid, room)
        sweep()
        assert Path(room).is_dir()
        assert is_mounted(pid, room)


def test_it_stays_when_the_client_is_gone(begin):
    """A lasting supervisor goes on for its other clients."""
    with begin("lasting") as (process, pid, room, way):
        other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.connect(way)
        supervisor = Supervisor.connected(other)
        supervisor.call(_JOB, {}, where="host")
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        sweep()
        assert Path(room).is_dir()
        assert is_mounted(pid, room)
        supervisor.call(_JOB, {}, where="host")  # and it still works
        other.close()
        assert ended(pid, 20)
        sweep()
        assert not Path(room).exists()


@pytest.mark.parametrize("kind", ["own", "lasting"])
def test_the_room_of_a_killed_supervisor_goes(begin, kind):
    with begin(kind) as (_, pid, room, _way):
        os.kill(pid, signal.SIGKILL)
        assert ended(pid, 20)
        assert Path(room).is_dir()  # nobody was there to remove it
        sweep()
        assert not Path(room).exists()


def test_what_an_engine_made_in_a_room_after_its_supervisors_end_goes_too(begin):
    with begin("own") as (_, pid, room, _way):
        os.kill(pid, signal.SIGKILL)
        assert ended(pid, 20)
        Path(room, "states", "one").mkdir(parents=True)
        sweep()
        assert not Path(room).exists()


def test_only_rooms_are_removed_whose_process_is_gone():
    """By pid, pid namespace and the whole of the name."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = pid_namespace()
    names = {
        f"{PREFIX}{here}-{gone.pid}-00ff": False,
        f"{PREFIX}{here}-{gone.pid}-full": True,
        f"{PREFIX}0000000000-{gone.pid}-00ff": True,
        f"{PREFIX}{here}-{os.getpid()}-00ff": True,
        f"{PREFIX}other": True,
    }
    folders = {Path("/tmp", name): stays for name, stays in names.items()}
    for folder in folders:
        folder.mkdir()
    try:
        sweep()
        assert {folder: folder.exists() for folder in folders} == folders
    finally:
        for folder in folders:
            if folder.exists():
                folder.rmdir()
