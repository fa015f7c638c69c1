"""What a group has used, read from the files of control groups v1 and v2.

Kernel documentation: admin-guide/cgroup-v1/{memory,pids,blkio-controller}, admin-guide/cgroup-v2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.oci.cgroups import GroupPaths


class Usage(NamedTuple):
    """Memory and written bytes in bytes, CPU time in seconds.

    `oom_kills`: processes that the kernel killed for memory; `pids_refused`: forks that the limit
    of processes refused. None: this machine does not count it for the group.
    """

    oom_kills: int | None = None
    pids_refused: int | None = None
    pids: int | None = None
    memory: int | None = None
    memory_peak: int | None = None
    cpu_seconds: float | None = None
    bytes_written: int | None = None


def read_usage(paths: GroupPaths) -> Usage:
    """What the group has used so far; it must be read before the group is removed."""
    folders = paths.controllers
    memory, pids = folders.get("memory"), folders.get("pids")
    written = None
    if "blkio" in folders:
        written = _v1_written(folders["blkio"])
    elif "io" in folders:
        written = _v2_written(folders["io"])
    return Usage(
        oom_kills=_first(
            _keyed(memory, "memory.events", "oom_kill"),
            _keyed(memory, "memory.oom_control", "oom_kill"),
        ),
        pids_refused=_keyed(pids, "pids.events", "max"),
        pids=_number(pids, "pids.current"),
        memory=_first(
            _number(memory, "memory.current"),
            _number(memory, "memory.memsw.usage_in_bytes"),
            _number(memory, "memory.usage_in_bytes"),
        ),
        memory_peak=_peak(memory),
        cpu_seconds=_cpu(paths),
        bytes_written=written,
    )


def read_memory(paths: GroupPaths) -> dict[str, int | None]:
    """`oom_kills` and `memory_peak` alone: what is asked of a sandbox that has ended."""
    memory = paths.controllers.get("memory")
    kills = _first(
        _keyed(memory, "memory.events", "oom_kill"),
        _keyed(memory, "memory.oom_control", "oom_kill"),
    )
    return {"oom_kills": kills, "memory_peak": _peak(memory)}


def _peak(memory: Path | None) -> int | None:
    """v2: memory.peak came with Linux 5.19."""
    return _first(
        _number(memory, "memory.peak"),
        _number(memory, "memory.current"),
        _number(memory, "memory.memsw.max_usage_in_bytes"),
        _number(memory, "memory.max_usage_in_bytes"),
    )


def _cpu(paths: GroupPaths) -> float | None:
    """cpuacct.usage counts nanoseconds, cpu.stat of v2 microseconds (without any controller)."""
    nanoseconds = _number(paths.controllers.get("cpuacct"), "cpuacct.usage")
    if nanoseconds is not None:
        return nanoseconds / 1e9
    microseconds = _keyed(paths.unified, "cpu.stat", "usage_usec")
    return None if microseconds is None else microseconds / 1e6


def _v1_written(folder: Path) -> int | None:
    """Lines are `8:0 Write 4096`; the last one is `Total 4096`."""
    for name in ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"):
        text = _read(folder, name)
        if text is not None:
            lines = (line.split() for line in text.splitlines())
            return sum(int(words[2]) for words in lines if len(words) == 3 and words[1] == "Write")
    return None


def _v2_written(folder: Path) -> int | None:
    """Lines are `8:0 rbytes=1 wbytes=2 rios=3 ...`."""
    text = _read(folder, "io.stat")
    if text is None:
        return None
    words = (word.partition("=") for word in text.split())
    return sum(int(value) for key, _, value in words if key == "wbytes")


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _number(folder: Path | None, name: str) -> int | None:
    text = _read(folder, name)
    return int(text) if text is not None and text.strip().isdigit() else None


def _keyed(folder: Path | None, name: str, key: str) -> int | None:
    """The value of one line `key value`."""
    for line in (_read(folder, name) or "").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == key and words[1].isdigit():
            return int(words[1])
    return None


def _read(folder: Path | None, name: str) -> str | None:
    if folder is None:
        return None
    try:
        return (folder / name).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
