"""Resource limits of a sandbox and the two profiles that plans choose from."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from pytest_sandbox.errors import UsageError

_SIZE = re.compile(r"(?i)\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*")
_UNIT = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: str | int) -> int:
    """Bytes from `512m`, `2g`, `2GiB` or a plain number (units are powers of 1024). Raises
    UsageError.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(str(value))
    if match is None:
        msg = f"{value!r} is no size"
        raise UsageError(msg, next_step="write bytes or a number with k, m, g or t, like 512m")
    return int(float(match[1]) * _UNIT[match[2].lower()])


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use.

    `memory` and `disk` and `output` are bytes (memory counts swap: one limit), `cpus` cores,
    `pids` and `nofile` counts, `timeout` the wall clock of the whole sandbox in seconds. `output`
    ends a command that writes more to one stream.
    """

    memory: int = 2 << 30
    cpus: float = 2.0
    pids: int = 100
    timeout: float = 120.0
    nofile: int = 65536
    disk: int = 10 << 30
    output: int = 256 << 20

    def override(self, **values: Any) -> Limits:
        """A copy with every value that is not None put in its place."""
        known = {field.name for field in fields(self)}
        return replace(self, **{k: v for k, v in values.items() if v is not None and k in known})


PROFILES = {
    "default": Limits(),
    "build": Limits(memory=4 << 30, cpus=4.0, pids=500, timeout=900.0),
}
"""The profiles of the registry's own sandbox: binary installs, and installs that build or use the
network.
"""
