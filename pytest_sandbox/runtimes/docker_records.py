"""What an engine recorded of a container: its end by memory, its use of resources."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.runtimes.base import Stats

if TYPE_CHECKING:
    from collections.abc import Iterable

_ONE_KILL: Final = 100_000_000
"""Nanoseconds."""


def was_out_of_memory(
    client: Any, container: str, seconds: float, patience: float = 0.0, known: int = 0
) -> bool:
    """Whether the engine recorded in the last `seconds` that the memory limit killed something.

    With `patience` the container is ending: its end is waited for, and only what was killed within
    2 s before it counts, without the first `known` kills, which were told.
    """
    import docker.errors

    deadline = time.monotonic() + patience
    while True:
        try:
            events = client.events(
                since=int(time.time() - seconds) - 1,
                until=int(time.time()) + 1,
                filters={"container": container, "event": ["oom", "die"]},
            )
            text = b"".join(events)
            found = [json.loads(line) for line in text.split(b"\n") if line.strip()]
        except (docker.errors.APIError, ValueError):
            return False
        ends = [event["timeNano"] for event in found if event.get("status") == "die"]
        times = [event["timeNano"] for event in found if event.get("status") == "oom"]
        kills = _kills(times)[known:]
        if patience == 0.0 or (ends and kills):
            return any(not ends or ends[0] - at < 2e9 for at in kills)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _kills(times: Iterable[int]) -> list[int]:
    """When something was killed (ns). One kill may be recorded several times in a row: control
    groups v1 tell each attempt to get memory that was none.
    """
    found: list[int] = []
    last = 0
    for at in sorted(times):
        if at - last > _ONE_KILL:
            found.append(at)
        last = at
    return found


def container_stats(client: Any, container: str) -> Stats:
    """Use of resources by the engine's own interface."""
    found = client.stats(container, stream=False)
    memory, cpu = found.get("memory_stats", {}), found.get("cpu_stats", {})
    written = sum(
        entry["value"]
        for entry in found.get("blkio_stats", {}).get("io_service_bytes_recursive") or ()
        if entry["op"].lower() == "write"
    )
    return Stats(
        int(memory.get("max_usage") or memory.get("usage") or 0),
        cpu.get("cpu_usage", {}).get("total_usage", 0) / 1e9,
        written,
    )


def is_running(client: Any, container: str) -> bool:
    """Whether a container runs."""
    import docker.errors

    try:
        return bool(client.inspect_container(container)["State"]["Running"])
    except docker.errors.APIError:
        return False
