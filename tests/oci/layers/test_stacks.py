"""Property: a stack of layers becomes the same tree as with umoci, whichever way it is applied."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.oci.layers.stacks import (
    apart,
    archive,
    by_umoci,
    layer_of,
    onto_one_tree,
    onto_overlays,
    same,
    shown,
    stacks,
    tree,
)
from tests.oci.requiring import program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="umoci needs root to keep owners")


@pytest.fixture(autouse=True, scope="module")
def _umoci():
    program("umoci")


QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NO_DEVICES = {"device"}


def without_devices(layers):
    return [[entry for entry in layer if entry["kind"] not in NO_DEVICES] for layer in layers]


@pytest.fixture
def fresh(tmp_path_factory):
    """A new folder at each call; the last one is removed."""
    base = tmp_path_factory.mktemp("stacks")
    number = 0

    def make():
        nonlocal number
        number += 1
        shutil.rmtree(base / str(number - 1), ignore_errors=True)
        (base / str(number)).mkdir()
        return base / str(number)

    yield make
    shutil.rmtree(base, ignore_errors=True)


@QUICK
@given(layers=stacks())
def test_the_same_tree_as_umoci(fresh, layers):
    folder = fresh()
    since = time.time_ns()
    data = [archive(layer) for layer in without_devices(layers)]
    theirs = by_umoci(folder, data)
    ours = onto_one_tree(folder / "ours", data)
    event("refused" if ours is None else "applied")
    if ours is None or theirs is None:
        assert (ours is None) == (theirs is None)
        return
    mine, others = same(tree(ours), tree(theirs, since=since))
    assert mine == others


@QUICK
@given(layers=stacks())
def test_the_same_tree_whichever_way(fresh, layers):
    folder = fresh()
    data = [archive(layer) for layer in layers]
    plain = onto_one_tree(folder / "plain", data)

    def other(name, *, ahead):
        def work():
            found, redone = onto_overlays(folder / name, data, ahead=ahead)
            return [None if found is None else shown(tree(found)), redone]

        found = apart(work)
        diffs = sorted((folder / name).glob("diff?"))
        return (*found, [layer_of(diff, overlay=diff != diffs[0]) for diff in diffs])

    serial, _, made = other("serial", ahead=False)
    early, redone, made_early = other("early", ahead=True)
    event(f"redone: {redone > 0}, refused: {plain is None}")
    wanted = None if plain is None else shown(tree(plain))
    assert serial == wanted
    assert early == wanted
    if wanted is not None:  # and the layers that are made of it are the same image again
        for number, layers_again in enumerate((made, made_early)):
            again = onto_one_tree(folder / f"again{number}", layers_again)
            assert shown(tree(again)) == wanted
