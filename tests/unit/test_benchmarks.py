"""The benchmarks are importable, read their arguments, and judge their own figures."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES, arguments
from benchmarks.contest import Bar, Contest, interleave, percentile

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_each_has_contests(name: str):
    assert callable(importlib.import_module(f"benchmarks.{name}").contests)


@pytest.mark.parametrize("words", [["-m", "benchmarks"], ["benchmarks/collect.py"]])
def test_runs_as_a_module_and_as_a_file(words: list[str]):
    argv = [sys.executable, *words, "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout


def test_without_a_corpus_there_are_copies_of_the_shipped_recipes(tmp_path: Path):
    from benchmarks.collect import COPIES, RECIPES, copies
    from pytest_sandbox.recipes.load import load_recipe

    found = sorted(copies(tmp_path).iterdir())
    assert len(found) == COPIES * len(list(RECIPES.glob("*.toml")))
    some = found[:: COPIES // 2]
    assert [load_recipe(path).name for path in some] == [path.stem for path in some]


def test_arguments():
    given = arguments(["startup", "--rounds", "3", "--json"])
    assert (given.only, given.rounds, given.json) == (("startup",), 3, True)
    assert arguments([]).only == NAMES
    assert arguments([], ("collect",)).only == ("collect",)


@pytest.mark.parametrize("words", [["speed"], ["--rounds", "0"], ["--rounds", "many"]])
def test_wrong_arguments_are_usage_errors(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        arguments(words)
    assert stopped.value.code == 2
    assert words[-1] in capsys.readouterr().err or "--rounds" in words


def test_bars_are_held_or_missed():
    assert Bar("at most", 1.5, 1.5).held
    assert not Bar("at most", 1.51, 1.5).held
    assert not Bar("at least", 19.9, 20, least=True).held
    assert not Bar("no number", float("nan"), 1.5).held


def test_turns_rotate_and_the_warm_up_does_not_count():
    turns: list[str] = []
    seconds = {"ours": 2.0, "theirs": 1.0}

    def candidate(name: str):
        def turn() -> float:
            turns.append(name)
            return seconds[name]

        return turn

    samples = interleave({name: candidate(name) for name in seconds}, 2)
    assert turns[2:] == ["ours", "theirs", "theirs", "ours"]
    contest = Contest("two", samples)
    assert samples == {"ours": [2.0, 2.0], "theirs": [1.0, 1.0]}
    assert contest.ratio("ours", "theirs") == 2.0
    assert contest.slower("ours", "theirs") == 1.0
    assert "0.50x" in str(contest)


def test_p95_is_one_of_the_samples():
    assert percentile([float(n) for n in range(1, 21)], 95) == 19.0
    assert percentile([3.0], 95) == 3.0
