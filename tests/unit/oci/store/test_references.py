"""What keeps things from a sweep: living work, and living owners of sandboxes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.store.files import read_json, write_json
from pytest_sandbox.oci.store.locks import Locks
from pytest_sandbox.oci.store.owners import Owner, owner_of
from pytest_sandbox.oci.store.uses import Uses
from pytest_sandbox.oci.store.work import Work, living
from tests.oci.store.seeing import listing


@pytest.fixture
def folders(tmp_path):
    for name in ("leases", "tmp", "trash", "locks", "uses"):
        (tmp_path / name).mkdir()
    return tmp_path


def work(folders):
    return Work(folders / "leases", folders / "tmp", folders / "trash", Locks(folders / "locks"))


def test_living_work_protects_and_its_end_does_not(folders):
    with work(folders) as one:
        one.protect(layers=["abc", "def"], blobs=["sha256:1"])
        (one.folder / "half").write_text("x")
        (one.folder / "of-others").mkdir()
        assert living(folders / "leases") == ({"abc", "def"}, {"sha256:1"}, [])
    assert living(folders / "leases") == (set(), set(), [])
    assert listing(folders / "tmp") == []
    (left,) = (folders / "trash").iterdir()
    assert listing(left) == ["of-others"]


def test_killed_work_is_told_as_dead(folders):
    code = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from pytest_sandbox.oci.store.locks import Locks\n"
        "from pytest_sandbox.oci.store.work import Work\n"
        "at = Path(sys.argv[1])\n"
        "w = Work(at / 'leases', at / 'tmp', at / 'trash', Locks(at / 'locks'))\n"
        "w.protect(layers=['abc'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folders)], check=False)
    assert done.returncode == -9
    keys, blobs, dead = living(folders / "leases")
    assert (keys, blobs) == (set(), set())
    assert dead == listing(folders / "tmp")


def test_a_sweep_holds_references_back(folders):
    locks = Locks(folders / "locks")
    began = threading.Event()
    done = []

    def refer() -> None:
        began.set()
        with locks.references():
            done.append("referred")

    thread = threading.Thread(target=refer)
    with locks.references(sweep=True):
        thread.start()
        began.wait()
        thread.join(0.2)
        assert done == []
    thread.join(5)
    assert done == ["referred"]
    with locks.references(), locks.references():
        pass  # those who refer do not hinder each other


def test_uses_of_dead_owners_do_not_count(folders):
    uses = Uses(folders / "uses")
    uses.put("mine", ["a", "b"], owner_of())
    child = subprocess.Popen(["sleep", "60"])
    uses.put("theirs", ["c"], owner_of(child.pid))
    assert uses.living() == ({"a", "b", "c"}, [])
    child.kill()
    child.wait()
    assert uses.living() == ({"a", "b"}, ["theirs"])
    uses.release("mine")
    assert uses.living() == (set(), ["theirs"])
    with pytest.raises(UsageError):
        uses.put("../x", [], owner_of())


def test_owners_that_cannot_be_seen_die_of_age(folders):
    here = owner_of()
    foreign = Owner("another boot", here.namespace, here.pid, here.started)
    assert not here.is_dead(1e9)
    assert not foreign.is_dead(3600)
    assert foreign.is_dead(25 * 3600)
    with pytest.raises(ProcessLookupError):
        owner_of(1 << 22)


def test_torn_files_count_as_absent(folders):
    file = folders / "x.json"
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}
    file.write_text('{"a":')
    assert read_json(file) is None
    file.write_text("[]")
    assert read_json(file) is None
    assert read_json(folders / "none.json") is None


def test_one_key_one_holder_and_waiting_is_said(folders):
    locks = Locks(folders / "locks")
    said = []
    lock = locks.acquire("layer", "abc", "a layer")
    waiter = threading.Thread(
        target=lambda: locks.acquire("layer", "abc", "a layer", said.append).release()
    )
    waiter.start()
    waiter.join(2.5)
    assert waiter.is_alive()
    assert said == ["waiting for another process that works on a layer"]
    lock.release()
    waiter.join(5)
    assert not waiter.is_alive()
    assert len(listing(folders / "locks")) == 1  # never unlinked
    with locks.unless_held("trash") as ours, locks.unless_held("trash") as again:
        assert (ours, again) == (True, False)
