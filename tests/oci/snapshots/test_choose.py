"""Which snapshotter a store gets, and that the answer is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.snapshots import choose as choosing
from pytest_sandbox.oci.snapshots.choose import Attempt, Choice, choose, try_out
from pytest_sandbox.oci.snapshots.trial import TrialFailed
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor
from tests.oci.hosts import ROOT
from tests.oci.requiring import fuse_overlayfs, ordinary_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's trial; the user's is below")


@pytest.fixture
def store(tmp_path):
    supervisor = Supervisor(find_ids)
    yield Store(tmp_path / "store", supervisor)
    supervisor.close()


@pytest.mark.parametrize("name", ["overlay", "fuse-overlayfs", "copy", "hardlink"])
def test_each_passes_its_trial_and_leaves_nothing(name, store):
    if name == "fuse-overlayfs":
        fuse_overlayfs()
    assert try_out(store, name) == Attempt(name)
    assert list(store.temporary.iterdir()) == []
    assert list(store.trash.iterdir()) == []
    room = Path(f"/proc/{store.caller.pid}/mountinfo").read_text()
    assert "trial" not in room


def test_the_choice_is_kept_until_something_changes(store, monkeypatch):
    tried = []

    def counted(store, name):
        tried.append(name)
        return try_out(store, name)

    monkeypatch.setattr(choosing, "try_out", counted)
    first = choose(store)
    assert first.name == "overlay"
    assert first.reason == "tried and works"
    assert choose(store) == first
    assert tried == ["overlay"]
    assert choose(store, fresh=True) == first
    assert choose(store, "copy").name == "copy"
    assert tried == ["overlay", "overlay", "copy"]
    monkeypatch.setattr(choosing, "boot_id", lambda: "another boot")
    assert choose(store, "copy").name == "copy"
    assert tried[3:] == ["copy"]


def test_a_damaged_note_is_no_choice(store):
    first = choose(store)
    for text in ("", "{", '{"key": 1}', json.dumps({"key": {}, "name": "overlay"})):
        (store.root / choosing.FILE).write_text(text)
        assert choose(store) == first


def test_what_was_asked_for_is_not_replaced(store, monkeypatch):
    monkeypatch.setattr(choosing, "try_out", lambda _, name: Attempt(name, "it is broken"))
    with pytest.raises(TrialFailed, match="overlay: it is broken") as wrong:
        choose(store, "overlay")
    assert wrong.value.next_step
    with pytest.raises(
        TrialFailed, match=r"overlay: it is broken; fuse-overlayfs: .*; copy: it is"
    ):
        choose(store)
    with pytest.raises(UsageError, match="no snapshotter"):
        choose(store, "zfs")


def test_the_choice_says_why():
    attempts = (Attempt("overlay", "mount: Invalid argument"), Attempt("fuse-overlayfs"))
    choice = Choice("fuse-overlayfs", attempts)
    assert choice.reason == "overlay: mount: Invalid argument"
    found = choice.findings()
    assert [(one.id, one.ok, one.fatal) for one in found] == [
        ("snapshotter", True, False),
        ("no-overlay", False, False),
    ]
    assert "5.11" in found[1].next_step


_PROGRAM = """
import json, sys
from pathlib import Path
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.snapshots.choose import choose, try_out
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor
supervisor = Supervisor(find_ids)
store = Store(Path(sys.argv[1]) / "store", supervisor)
failed = {name: try_out(store, name).failed for name in ("overlay", "copy", "hardlink")}
left = [str(path) for path in store.temporary.iterdir()]
print(json.dumps([failed, choose(store).name, left]))
supervisor.close()
"""


def test_an_ordinary_user_has_them_too():
    user = ordinary_user()
    with tempfile.TemporaryDirectory(prefix="psb-choose-") as place:
        os.chown(place, user.pw_uid, user.pw_gid)
        done = subprocess.run(
            ["runuser", "-u", user.pw_name, "--", sys.executable, "-c", _PROGRAM, place],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": place},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    failed, chosen, left = json.loads(done.stdout)
    assert failed == {"overlay": "", "copy": "", "hardlink": ""}
    assert chosen == "overlay"
    assert left == []
