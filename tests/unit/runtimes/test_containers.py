"""The folders of sandboxes: claimed once, found by name and id, cleared when the owner is dead."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pytest_sandbox.errors import SandboxError, UsageError
from pytest_sandbox.oci.store.owners import Owner, owner_of
from pytest_sandbox.runtimes.oci.containers.folder import (
    Containers,
    UnknownSandbox,
    check_name,
    connect,
    new_id,
    read_end,
    read_record,
    remove_folder,
    write_end,
    write_record,
)
from pytest_sandbox.runtimes.oci.containers.reaching import Waiter
from pytest_sandbox.runtimes.oci.containers.record import Ending, Record, shell_status

DEAD = Owner("another boot", "another namespace", 1, 1)


@pytest.fixture
def containers(tmp_path):
    return Containers(tmp_path)


def record(name="", *, identity="", owner=None, **more):
    here = owner_of()
    return Record(
        id=identity or new_id(),
        owner=owner or here,
        image="image:1",
        command=("sh", "-c", "a  b"),
        created=more.pop("created", time.time()),
        client=here,
        name=name,
        limits={"memory": 5, "weak": ["memory"]},
        **more,
    )


def claim(containers, made):
    folder, listener = containers.claim(made)
    return folder, listener


def test_a_record_is_read_as_it_was_written(containers):
    made = record("one", ports=("127.0.0.1:1->2/tcp",), env=("A=b  c",), timeout=1.5, pid=7)
    folder, listener = claim(containers, made)
    listener.close()
    found = read_record(folder)
    assert found is not None
    assert found.document() == made.document()
    assert found.command == ("sh", "-c", "a  b")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"{", b'{"id": "x", "owner": 3}'])
def test_a_damaged_record_is_none(containers, data):
    folder, listener = claim(containers, record())
    listener.close()
    (folder / "state.json").write_bytes(data)
    assert read_record(folder) is None
    assert containers.all() == []


def test_found_by_name_id_and_beginning(containers):
    first = record("first", identity="aa" + "0" * 30, created=1.0)
    second = record("aab", identity="ab" + "0" * 30, created=2.0)
    for made in (first, second):
        claim(containers, made)[1].close()
    assert [one.id for one in containers.all()] == [second.id, first.id]
    assert containers.find("first").id == first.id
    assert containers.find(second.id).id == second.id
    assert containers.find("ab").id == second.id
    assert containers.find("aab").id == second.id  # a name before the beginning of an id
    assert containers.find("aa").id == first.id
    with pytest.raises(UsageError, match="the beginning of 2 ids"):
        containers.find("a")
    for text in ("", "none", "ff", "0" * 32, "../first", "a\x1b"):
        with pytest.raises((UnknownSandbox, UsageError)):
            containers.find(text)


def test_a_name_is_used_once(containers):
    claim(containers, record("web"))[1].close()
    with pytest.raises(SandboxError, match="the name web is used by the running sandbox") as told:
        claim(containers, record("web"))
    assert told.value.next_step.startswith("pytest-sandbox rm -f web")
    write_end(containers.find("web").folder, Ending(0, time.time()))
    with pytest.raises(SandboxError, match="used by the ended sandbox"):
        claim(containers, record("web"))
    remove_folder(containers.find("web").folder)
    claim(containers, record("web"))[1].close()
    left = {path.name for path in containers.root.iterdir()}
    assert left == {".lock", containers.find("web").id}


def test_of_many_at_once_one_gets_the_name(containers):
    won, lost = [], []

    def one():
        try:
            won.append(claim(containers, record("wanted")))
        except SandboxError as wrong:
            lost.append(wrong)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 11)
    won[0][1].close()


@pytest.mark.parametrize("name", ["-x", "", "a/b", "a b", "ü", "a" * 129, ".x", "x\n"])
def test_names_that_are_none(name):
    with pytest.raises(UsageError):
        check_name(name)


def test_the_socket_answers_while_somebody_listens(containers):
    deep = Containers(containers.root / ("d" * 100) / ("e" * 100))
    folder, listener = claim(deep, record())
    with listener, connect(folder) as end:
        peer, _ = listener.accept()
        with peer:
            peer.send(b"here")
            assert end.recv(10) == b"here"
    with pytest.raises(OSError, match="refused"):
        connect(folder)


def test_status(containers):
    alive, dead = record("alive"), record("dead", owner=DEAD, created=1.0)
    for made in (alive, dead):
        claim(containers, made)[1].close()
    assert containers.find("alive").status == "created"
    write_record(containers.find("alive").folder, alive._replace(pid=1))
    assert containers.find("alive").status == "running"
    assert containers.find("dead").status == "lost"
    write_end(containers.find("dead").folder, Ending(3, 5.0, "timeout"))
    found = containers.find("dead")
    assert (found.status, found.end) == ("exited", Ending(3, 5.0, "timeout"))


def test_the_end_is_read_through_a_removed_folder(containers):
    folder, listener = claim(containers, record())
    listener.close()
    with Waiter(containers.find(folder.name)) as waiter:
        with pytest.raises(TimeoutError):
            waiter.wait(0.05)
        told = threading.Timer(
            0.1, lambda: (write_end(folder, Ending(6, 1.0)), remove_folder(folder))
        )
        told.start()
        assert waiter.wait(20).code == 6
        told.join()
    assert not folder.exists()
    assert read_end(folder) is None


def test_who_has_no_supervisor_is_lost(containers):
    folder, listener = claim(containers, record(owner=DEAD, created=1.0))
    listener.close()
    with Waiter(containers.find(folder.name)) as waiter:
        assert (waiter.wait(20).code, waiter.wait(20).reason) == (137, "lost")


def test_half_made_folders(containers):
    claim(containers, record())[1].close()
    half = containers.root / f".{new_id()}"
    half.mkdir()
    assert containers.half_made() == []  # somebody may be at it
    os.utime(half, (1, 1))
    assert containers.half_made() == [half]


def test_statuses_of_a_shell():
    assert [shell_status(code) for code in (0, 7, 255, -9, -15)] == [0, 7, 255, 137, 143]
