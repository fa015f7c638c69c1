"""Which processes belong to a command."""

from __future__ import annotations

from pytest_sandbox.runtimes.processes import Process, descendants, parse_stat, parse_table, victims

OURS = (1, 7, 20, 30)  # init, control shell, two workers


def table(*rows: tuple[int, int, int, int]) -> dict[int, Process]:
    """Rows of pid, parent, session, start; with the sandbox's own processes."""
    own = [(1, 0, 1, 0), (7, 1, 1, 0), (20, 1, 20, 1), (30, 1, 30, 1)]
    return {pid: Process(pid, parent, sid, "S", at) for pid, parent, sid, at in (*own, *rows)}


def stat(pid: int, name: str, state: str = "S", parent: int = 1, started: int = 99) -> str:
    numbers = " ".join(["5", "6", *["0"] * 15, str(started), *["0"] * 30])
    return f"{pid} ({name}) {state} {parent} {numbers}"


def test_parse_stat_with_an_ugly_name():
    found = parse_stat(stat(12, "a) R 1 (b", parent=3, started=1234))
    assert found == Process(12, 3, 6, "S", 1234, "a) R 1 (b")


def test_parse_what_is_no_stat_line():
    assert parse_table(["", "nonsense", "12 (x) S 1", stat(5, "sh")]).keys() == {5}
    assert parse_stat("x (y) " + stat(1, "z").partition(") ")[2]) is None


def test_descendants():
    found = descendants(table((50, 20, 20, 5), (51, 50, 20, 6), (60, 30, 30, 5)), [50, 999])
    assert found == {50, 51}


def test_tree_of_the_root():
    processes = table((50, 20, 20, 5), (51, 50, 51, 6), (60, 30, 30, 5))
    assert victims(processes, root=processes[50], since=5, ours=OURS) == {50, 51}


def test_orphans_that_were_started_later_belong_to_the_command():
    processes = table(
        (50, 20, 20, 5), (40, 1, 40, 4), (41, 40, 40, 9), (70, 1, 70, 5), (71, 70, 70, 9)
    )
    # 40 is an earlier daemon: it and its child are spared. 70 came in the same tick, but later.
    assert victims(processes, root=processes[50], since=5, ours=OURS) == {50, 70, 71}


def test_same_tick_is_told_apart_by_pid():
    processes = table((50, 20, 20, 5), (49, 1, 49, 5), (51, 1, 51, 5))
    assert victims(processes, root=processes[50], since=5, ours=OURS) == {50, 51}


def test_without_a_root_the_begin_counts():
    processes = table((40, 1, 40, 4), (70, 1, 70, 5))
    assert victims(processes, root=None, since=5, ours=OURS) == {70}


def test_other_commands_are_spared():
    processes = table(
        (50, 20, 20, 5), (60, 30, 30, 6), (61, 60, 30, 7), (62, 1, 30, 8), (52, 1, 20, 8)
    )
    found = victims(processes, root=processes[50], since=5, ours=OURS, others=[60], session=20)
    assert found == {50, 52}


def test_while_others_run_an_orphan_without_a_session_is_spared():
    processes = table((50, 20, 1, 5), (60, 30, 1, 6), (62, 1, 1, 8))
    found = victims(processes, root=processes[50], since=5, ours=OURS, others=[60], session=0)
    assert found == {50}


def test_what_a_known_victim_started_counts():
    processes = table((50, 20, 20, 5), (40, 1, 40, 4), (41, 40, 40, 9))
    found = victims(processes, root=processes[50], since=5, ours=OURS, known=[40])
    assert found == {40, 41, 50}


def test_zombies_need_no_killing():
    processes = table((50, 20, 20, 5))
    processes[51] = Process(51, 50, 20, "Z", 6)
    assert victims(processes, root=processes[50], since=5, ours=OURS) == {50}


def test_the_sandboxs_own_processes_are_never_victims():
    processes = table()
    assert victims(processes, root=None, since=0, ours=OURS) == set()
