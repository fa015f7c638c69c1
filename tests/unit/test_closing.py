"""Calls are made behind the caller's back, with bounds, and all of them before the end."""

from __future__ import annotations

import os
import threading
import warnings

from pytest_sandbox.closing import Closer


def test_calls_are_made_by_others_and_finish_waits_for_all_of_them():
    closer = Closer()
    seen = []
    for number in range(50):
        closer.submit(lambda n=number: seen.append((n, threading.current_thread().name)))
    assert closer.finish(10)
    assert sorted(n for n, _ in seen) == list(range(50))
    assert {name for _, name in seen} == {"pytest-sandbox-close"}


def test_who_brings_too_much_waits():
    closer = Closer(threads=1, backlog=2)
    hold, begun = threading.Event(), threading.Event()

    def slow():
        begun.set()
        hold.wait(10)

    closer.submit(slow)
    assert begun.wait(10)
    for _ in range(2):
        closer.submit(lambda: None)
    one_more = threading.Thread(target=closer.submit, args=[lambda: None])
    one_more.start()
    one_more.join(0.05)
    assert one_more.is_alive()
    hold.set()
    one_more.join(10)
    assert not one_more.is_alive()
    assert closer.finish(10)


def test_the_end_is_bounded_and_what_comes_later_is_done_at_once():
    closer = Closer()
    hold = threading.Event()
    closer.submit(lambda: hold.wait(10))
    assert not closer.finish(0.05)
    late = []
    closer.submit(lambda: late.append(threading.current_thread()))
    assert late == [threading.current_thread()]
    hold.set()
    assert closer.finish(10)


def test_a_call_that_raises_stops_no_other():
    closer = Closer(threads=1)
    seen = []
    closer.submit(lambda: 1 / 0)
    closer.submit(lambda: seen.append(1))
    assert closer.finish(10)
    assert seen == [1]


def test_a_fork_does_it_itself():
    closer = Closer()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        child = os.fork()
    if not child:
        closer.submit(lambda: os.write(writer, b"done"))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 4) == b"done"
    os.close(reader)
    os.close(writer)
    assert closer.finish(1)
