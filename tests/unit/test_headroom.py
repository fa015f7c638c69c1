"""What waiting systems may take of the machine."""

from __future__ import annotations

import pytest

from pytest_sandbox import headroom


@pytest.fixture
def machine(monkeypatch):
    """Say what the machine has."""

    def given(*, cores, memory):
        monkeypatch.setattr(headroom, "cores", lambda: cores)
        monkeypatch.setattr(headroom, "free_memory", lambda: memory)

    return given


@pytest.mark.parametrize(
    ("cores", "memory", "asked", "each"),
    [
        (8, 64 << 30, (8, 1), 8),
        (8, 64 << 30, (0, 1), 0),
        (8, 64 << 30, (100, 1), 32),  # four a core
        (1, 64 << 30, (8, 1), 4),
        (8, 64 << 30, (8, 2), 4),
        (8, 64 << 30, (8, 64), 0),  # no memory is left for so many processes
        (8, 64 << 30, (8, 32), 1),
        (8, 512 << 20, (8, 1), 4),
        (8, 64 << 20, (8, 1), 0),
    ],
)
def test_how_many_may_wait(machine, cores, memory, asked, each):
    machine(cores=cores, memory=memory)
    wanted, workers = asked
    one, total = headroom.ready(wanted, workers)
    assert one == each
    assert one <= total <= 50
    assert total * workers * headroom.IDLE <= memory or not one


def test_fewer_starters_than_cores(machine):
    for cores in (2, 3, 4, 64):
        machine(cores=cores, memory=1 << 30)
        assert headroom.starters(1) < cores
        assert headroom.starters(4) == 1


def test_a_groups_limit_counts_without_what_the_kernel_can_give_back(monkeypatch, tmp_path):
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "900"),
        ("memory.stat", "anon 100\ninactive_file 700\n"),
    ):
        (tmp_path / name).write_text(text)
    folder = (tmp_path, "memory.max", "memory.current")
    monkeypatch.setattr(headroom, "_groups", lambda: (folder,))
    assert headroom.free_memory() == 800
    (tmp_path / "memory.max").write_text("max")
    assert headroom.free_memory() > 1000


def test_all_of_a_users_processes_take_turns(machine, tmp_path):
    machine(cores=3, memory=1 << 30)
    with headroom.turn(tmp_path) as one, headroom.turn(tmp_path) as two:
        assert (one, two) == (True, True)
        with headroom.turn(tmp_path) as three:
            assert not three
    with headroom.turn(tmp_path) as again:
        assert again
