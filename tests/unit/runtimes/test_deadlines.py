"""One thread waits for all wall clocks."""

from __future__ import annotations

import threading
import weakref

from pytest_sandbox.runtimes.deadlines import Deadlines


def test_calls_are_made_in_their_order_and_cancelled_ones_never():
    clock = Deadlines()
    seen: list[str] = []
    done = threading.Event()
    clock.arm(0.09, done.set)
    clock.arm(0.06, lambda: seen.append("late"))
    clock.arm(0.03, lambda: seen.append("never")).cancel()
    clock.arm(0.0, lambda: seen.append("early"))
    assert done.wait(10)
    assert seen == ["early", "late"]


def test_an_earlier_moment_wakes_the_thread():
    clock = Deadlines()
    clock.arm(3600, lambda: None)
    done = threading.Event()
    clock.arm(0.01, done.set)
    assert done.wait(10)


def test_a_slow_call_holds_up_no_other():
    clock = Deadlines()
    hold, done = threading.Event(), threading.Event()
    clock.arm(0.0, lambda: hold.wait(10))
    clock.arm(0.01, done.set)
    assert done.wait(10)
    hold.set()


def test_what_is_cancelled_is_kept_by_nothing():
    class System:
        def end(self) -> None:
            """Never called."""

    clock = Deadlines()
    system = System()
    seen = weakref.ref(system)
    alarms = [clock.arm(3600, system.end) for _ in range(1000)]
    for alarm in alarms:
        alarm.cancel()
        alarm.cancel()
    del system
    assert seen() is None
    assert len(clock._heap) < 200
