"""Whether a container ran out of memory, by what its engine recorded."""

from __future__ import annotations

import json
import time

import pytest

from pytest_sandbox.runtimes.docker_records import was_out_of_memory


class Client:
    """An engine's record: (status, seconds before now)."""

    def __init__(self, *events: tuple[str, float]) -> None:
        now = time.time_ns()
        self._events = [
            {"status": status, "timeNano": now - int(ago * 1e9)} for status, ago in events
        ]

    def events(self, **_: object) -> list[bytes]:
        return [json.dumps(event).encode() + b"\n" for event in self._events]


@pytest.mark.parametrize(
    ("events", "known", "expected"),
    [
        ([("oom", 0.5), ("die", 0.1)], 0, True),
        ([("oom", 0.5), ("die", 0.1)], 1, False),
        ([("oom", 0.51), ("oom", 0.5), ("die", 0.1)], 1, False),  # one kill, recorded twice
        ([("oom", 0.9), ("oom", 0.3), ("die", 0.1)], 1, True),
        ([("oom", 5.0), ("die", 0.1)], 0, False),
        ([("die", 0.1)], 0, False),
    ],
)
def test_only_a_kill_that_nobody_was_told_of_ends_a_sandbox(events, known, expected):
    client = Client(*events)
    assert was_out_of_memory(client, "c", 10, patience=0.01, known=known) == expected
