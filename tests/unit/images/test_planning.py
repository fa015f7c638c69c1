"""What stands on what: common parts are installed once, and nothing that is not wanted."""

from __future__ import annotations

from itertools import chain

import pytest

from pytest_sandbox.images.planning import Stage, plan, rotated

HEAVY = {f"h{n}": 10_000_000 for n in range(5)}
OTHER = {f"o{n}": 10_000_000 for n in range(5)}


def shape(stages):
    """(key or parts, what it stands on) of each."""
    names = [stage.key or "+".join(sorted(stage.parts)) for stage in stages]
    return [
        (name, names[s.upon] if s.upon >= 0 else "") for name, s in zip(names, stages, strict=True)
    ]


def check(wanted, stages):
    """Each wanted set is there once, whole, and on nothing that it does not consist of."""
    assert sorted(stage.key for stage in stages if stage.key) == sorted(wanted)
    for number, stage in enumerate(stages):
        assert stage.upon < number
        if stage.key:
            assert stage.parts == frozenset(wanted[stage.key])
        if stage.upon >= 0:
            assert stages[stage.upon].parts <= stage.parts


def test_one_stands_on_another_that_it_contains():
    wanted = {"all": {**HEAVY, "x": 10}, "heavy": HEAVY, "other": OTHER}
    stages = plan(wanted)
    check(wanted, stages)
    assert shape(stages) == [("heavy", ""), ("all", "heavy"), ("other", "")]


def test_what_is_common_is_a_stage_of_its_own_where_that_pays():
    wanted = {"a": {**HEAVY, "a": 10}, "b": {**HEAVY, "b": 10}, "c": {**OTHER, "c": 1}}
    stages = plan(wanted)
    check(wanted, stages)
    assert shape(stages) == [("h0+h1+h2+h3+h4", ""), ("a", "h0+h1+h2+h3+h4"),
                             ("b", "h0+h1+h2+h3+h4"), ("c", "")]  # fmt: skip
    light = {"a": {"x": 10, "a": 10}, "b": {"x": 10, "b": 10}}
    assert shape(plan(light)) == [("a", ""), ("b", "")]


def test_stages_on_stages():
    wanted = {
        "both": {**HEAVY, **OTHER},
        "both-1": {**HEAVY, **OTHER, "one": 10},
        "heavy-1": {**HEAVY, "two": 10},
        "heavy-2": {**HEAVY, "three": 10},
    }
    stages = plan(wanted)
    check(wanted, stages)
    told = dict(shape(stages))
    assert told["both-1"] == "both"
    assert told["both"] == told["heavy-1"] == told["heavy-2"] == "h0+h1+h2+h3+h4"


def test_equal_sets_are_built_once():
    wanted = {"a": HEAVY, "b": dict(HEAVY)}
    stages = plan(wanted)
    check(wanted, stages)
    assert sorted(stage.upon for stage in stages) == [-1, 0]


def test_what_is_refused_is_no_stage_of_its_own():
    wanted = {"a": {**HEAVY, "a": 10}, "b": {**HEAVY, "b": 10}}
    assert shape(plan(wanted, [frozenset(HEAVY)])) == [("a", ""), ("b", "")]
    assert shape(plan(wanted, common=False)) == [("a", ""), ("b", "")]
    wanted["c"] = dict(HEAVY)
    assert shape(plan(wanted, [frozenset(HEAVY)], common=False))[0] == ("c", "")


@pytest.mark.parametrize("by", range(3))
def test_workers_begin_with_different_builds(by):
    wanted = {name: {**HEAVY, name: 10} for name in "abcdef"}
    stages = plan(wanted)
    turned = rotated(stages, by, 3)
    check(wanted, turned)
    assert sorted(shape(turned)) == sorted(shape(stages))
    assert [stage.key for stage in turned[1:]] == list(
        chain("abcdef"[2 * by :], "abcdef"[: 2 * by])
    )


def test_nothing_and_one():
    assert plan({}) == []
    assert plan({"a": {}}) == [Stage("a", frozenset())]
