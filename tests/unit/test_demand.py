"""How many of the collected tests will ask for the same sandbox."""

from __future__ import annotations

import pytest

from pytest_sandbox.demand import Demand

SOURCE = """
import pytest

@pytest.mark.parametrize("n", range(10))
def test_plain(sandbox, n): pass

def test_other(): pass

@pytest.mark.sandbox(memory="1g")
def test_big_one(sandbox): pass

@pytest.mark.sandbox(memory="1g")
def test_big_two(sandbox): pass

@pytest.mark.requires_system("jq")
def test_jq(sandbox): pass

@pytest.mark.parametrize("n", range(3))
def test_made(sandbox_factory, n): pass

def test_installed(installed): pass
"""


@pytest.fixture
def items(pytester):
    return pytester.getitems(SOURCE)


def ahead(items, number, *, plain=True, workers=1, following=True):
    demand = Demand(items, workers)
    after = items[number + 1] if following and number + 1 < len(items) else None
    return tuple(demand.after(items[number], after, plain=plain))


def test_what_the_fixture_gives_is_counted_by_what_the_marks_say(items):
    assert [ahead(items, number) for number in range(10)] == [(n, True) for n in range(9, -1, -1)]
    assert ahead(items, 11) == (1, True)
    assert ahead(items, 12) == (0, True)
    assert ahead(items, 13) == (0, True)


def test_any_other_request_may_come_again_while_there_are_tests_that_can_make_it(items):
    assert ahead(items, 0, plain=False) == (5, False)
    assert ahead(items, 14, plain=False) == (4, False)
    assert ahead(items, 17, plain=False) == (1, False)


def test_after_the_last_test_of_this_process_comes_nothing(items):
    assert ahead(items, 0, following=False) == (0, True)
    assert ahead(items, 14, plain=False, following=False) == (1, False)


def test_workers_share_them_and_the_next_one_is_certain(items):
    assert ahead(items, 0, workers=2) == (5, True)
    assert ahead(items, 0, workers=100) == (1, True)
    demand = Demand(items, 2)
    stolen = demand.after(items[9], items[3], plain=True)
    assert tuple(stolen) == (1, True)


def test_no_more_is_looked_at_than_a_pool_can_hold(pytester):
    source = "import pytest\n@pytest.mark.parametrize('n', range(500))\ndef test_it(sandbox, n): 0"
    items = pytester.getitems(source)
    demand = Demand(items, 1)
    assert demand.after(items[0], items[1], plain=True).most >= 50
    assert demand._looked < 100
    assert demand.after(items[450], items[451], plain=True).most == 49
