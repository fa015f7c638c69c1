"""A signal that comes before a wait ends that wait."""

from __future__ import annotations

import os
import signal
import time

from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.client import Channel
from pytest_sandbox.runtimes.oci.foreground import Signals


class Told(Channel):
    """Notes what it is to signal."""

    def signal(self, number: int) -> None:
        heard.append(number)


heard: list[int] = []


def test_a_signal_just_before_a_wait_is_not_slept_through():
    """Its handler has run: the call that waits is not interrupted any more."""
    mine, theirs = messages.pair()
    with Signals() as signals, mine, theirs:
        channel = Told(mine, "a:job")
        signals.send_to(channel)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        began = time.monotonic()
        assert channel.wait(10, signals.told) is False
        assert time.monotonic() - began < 5
        signals.heed()
        assert channel.wait(0.01, signals.told) is None, "nothing more"
        messages.send(theirs, {"exit": 0})
        assert channel.wait(10, signals.told) is True
    assert signals.told == -1
