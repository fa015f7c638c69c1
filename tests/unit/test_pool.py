"""Systems that are started ahead: which stand in for each other, how many, and what becomes of
them.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from pytest_sandbox import FakeRuntime, Limits, Mount, Owner, RuntimeUnavailable, SandboxSpec
from pytest_sandbox.pool import EXPECTED, Ahead, Pool, key_of
from pytest_sandbox.targets import Target

SPEC = SandboxSpec("img", Target("linux", "amd64", "debian"), Limits(), env={"A": "1"})
OWNER = Owner("run", "boot", "ns", 1, 1)
MANY = Ahead(100, sure=True)


class Engine(FakeRuntime):
    """Starts ahead can be held back, and all made to fail."""

    def __init__(self):
        super().__init__()
        self.may_start = threading.Event()
        self.may_start.set()
        self.broken = False
        self.begun = 0
        self.by: list[str] = []

    def start(self, spec, owner):
        self.begun += 1
        self.by.append(threading.current_thread().name)
        if self.by[-1] == "pytest-sandbox-pool":
            self.may_start.wait(10)
        if self.broken:
            msg = "the engine is out of order"
            raise RuntimeUnavailable(msg)
        return super().start(spec, owner)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def make(engine, tmp_path):
    """Make a pool on the engine; it is closed after the test."""
    pools = []

    def pool(**bounds):
        found = engine.find_image
        pools.append(
            Pool(
                lambda spec: engine.start(spec, OWNER),
                lambda name: found(name).digest if found(name) else "",
                lambda system: system.close(),
                turns=tmp_path,
                **{"each": 8, "total": 32, **bounds},
            )
        )
        return pools[-1]

    yield pool
    engine.may_start.set()
    for one in pools:
        one.close(10)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting(engine, mine):
    """Systems that are open and are no test's."""
    return [one for one in engine.systems if one.alive() and one not in mine]


def test_the_second_comes_from_the_pool_and_is_as_it_was_asked_for(make, engine):
    pool = make()
    first = pool.get(SPEC, MANY)
    until(lambda: waiting(engine, [first]))
    asked = replace(SPEC, purpose="test_it")
    second = pool.get(asked, MANY)
    assert (second.spec, pool.taken) == (asked, 1)
    assert second is not first
    assert engine.by[0] == threading.current_thread().name
    assert set(engine.by[1:]) == {"pytest-sandbox-pool"}


@pytest.mark.parametrize(
    "other",
    [
        {"image": "other"},
        {"target": Target("linux", "amd64", "alpine")},
        {"limits": Limits(memory=1 << 20)},
        {"limits": Limits(timeout=1)},
        {"network": "bridge"},
        {"no_new_privileges": True},
        {"env": {"A": "2"}},
        {"user": "nobody"},
        {"cwd": "/srv"},
        {"tmpfs": {"/t": 1}},
    ],
    ids=str,
)
def test_what_differs_is_another_kind(other):
    assert key_of(SPEC, "sha") != key_of(replace(SPEC, **other), "sha")
    assert key_of(SPEC, "sha") != key_of(SPEC, "another")
    assert key_of(SPEC, "sha") == key_of(replace(SPEC, purpose="p", env={"A": "1"}), "sha")


def test_a_callers_own_files_are_never_mounted_ahead(make, engine, tmp_path):
    pool = make()
    for _ in range(3):
        pool.get(replace(SPEC, mounts=(Mount(tmp_path, "/m"),)), MANY)
    pool.close(10)
    assert (engine.begun, pool.started) == (3, 0)


def test_nothing_is_started_that_no_test_can_take(make, engine):
    pool = make()
    mine = [pool.get(SPEC, Ahead(left, sure=True)) for left in (2, 1, 0)]
    pool.close(10)
    assert len(engine.systems) == len(set(map(id, mine))) == 3
    assert waiting(engine, mine) == []


def test_one_test_alone_starts_one_system(make, engine):
    pool = make()
    pool.get(SPEC, Ahead(0, sure=True))
    pool.get(replace(SPEC, image="by-factory"), Ahead(50, sure=False))
    pool.close(10)
    assert engine.begun == 2


def test_a_factorys_kind_counts_when_it_is_asked_for_again(make, engine):
    pool = make()
    mine = [pool.get(SPEC, Ahead(50, sure=False)) for _ in range(2)]
    until(lambda: waiting(engine, mine))


def test_it_grows_when_tests_had_to_wait_and_only_then(make, engine):
    pool = make(each=4)
    mine = [pool.get(SPEC, MANY)]
    for _ in range(3):  # each found one ready
        until(lambda: len(waiting(engine, mine)) == 1)
        mine.append(pool.get(SPEC, MANY))
    until(lambda: len(waiting(engine, mine)) == 1)
    time.sleep(0.05)
    assert len(waiting(engine, mine)) == 1
    for _ in range(20):  # quicker than they can be started
        mine.append(pool.get(SPEC, MANY))
    until(lambda: len(waiting(engine, mine)) == 4)
    time.sleep(0.05)
    assert len(waiting(engine, mine)) == 4


def test_a_test_waits_for_a_start_that_is_under_way(make, engine):
    pool = make()
    engine.may_start.clear()
    first = pool.get(SPEC, Ahead(1, sure=True))
    until(lambda: engine.begun == 2)
    threading.Timer(0.05, engine.may_start.set).start()
    second = pool.get(SPEC, Ahead(0, sure=True))
    pool.close(10)
    assert (engine.begun, pool.taken) == (2, 1)
    assert second is not first


def test_one_that_died_while_it_waited_is_not_taken(make, engine):
    pool = make()
    first = pool.get(SPEC, MANY)
    until(lambda: waiting(engine, [first]))
    dead = waiting(engine, [first])[0]
    dead.close()
    second = pool.get(SPEC, MANY)
    assert second is not dead
    assert second.alive()


def test_a_start_that_fails_ahead_is_told_by_the_next_test_and_not_repeated(make, engine):
    pool = make()
    pool.get(SPEC, MANY)
    until(lambda: pool.started == 1)
    engine.broken = True
    pool.get(SPEC, MANY)  # the one that waited
    until(lambda: engine.begun == 3)
    with pytest.raises(RuntimeUnavailable, match="out of order"):
        pool.get(SPEC, MANY)
    begun = engine.begun
    time.sleep(0.05)
    assert engine.begun == begun
    engine.broken = False
    last = pool.get(SPEC, MANY)
    assert last.alive()
    until(lambda: engine.begun > begun + 1)


def test_another_content_under_the_same_name_is_another_kind(make, engine):
    pool = make()
    first = pool.get(SPEC, MANY)
    until(lambda: waiting(engine, [first]))
    old = waiting(engine, [first])
    engine._images["img"] = replace(engine._images["img"], digest="sha256:new")
    second = pool.get(SPEC, MANY)
    assert second not in old
    assert not any(one.alive() for one in old)


def test_all_kinds_together_are_bounded_by_what_was_not_asked_for_lately(make, engine):
    pool = make(each=2, total=2)
    mine = []
    for number in range(5):
        mine.append(pool.get(replace(SPEC, image=f"img{number}"), MANY))
        until(lambda n=number: any(w.spec.image == f"img{n}" for w in waiting(engine, mine)))
    assert len(waiting(engine, mine)) <= 2


def test_the_end_waits_for_a_start_under_way_and_leaves_nothing(make, engine):
    pool = make()
    mine = [pool.get(SPEC, MANY)]
    until(lambda: waiting(engine, mine))
    engine.may_start.clear()
    mine.append(pool.get(SPEC, MANY))
    until(lambda: engine.begun == 3)
    pool.close(0.01)  # bounded, whatever the engine does
    engine.may_start.set()
    pool.close(10)
    until(lambda: not waiting(engine, mine))
    assert pool.get(SPEC, MANY).alive()  # on the test's own path
    assert engine.by[-1] == threading.current_thread().name


def test_processes_take_turns_and_a_test_does_not_wait_for_another_processs_turn(
    make, engine, monkeypatch
):
    from contextlib import contextmanager

    from pytest_sandbox import headroom

    @contextmanager
    def others(folder):
        yield False

    monkeypatch.setattr(headroom, "turn", others)
    pool = make()
    for _ in range(5):
        pool.get(SPEC, MANY)
    assert engine.begun == 5


def test_what_is_expected_is_started_for_who_asks(engine, make):
    pool = make()
    other = replace(SPEC, no_new_privileges=True)
    for spec in (SPEC, other, SPEC):
        pool.expect(spec, "")
    until(lambda: pool.started == 2)  # the second of a kind is started when the first is taken
    for spec, started in ((SPEC, 3), (other, 3), (SPEC, 3)):
        begun = engine.begun
        system = pool.get(spec, EXPECTED)
        assert system.spec == spec
        assert engine.begun - begun <= 1
        until(lambda wanted=started: pool.started == wanted)
    assert pool.taken == 3
    assert engine.begun == 3  # nobody starts more than was expected
    pool.get(SPEC, EXPECTED)  # and one that nobody expected is started here
    assert (pool.taken, engine.begun) == (3, 4)
