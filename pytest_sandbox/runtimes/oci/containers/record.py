"""What is known of one sandbox: what was started, and how it ended."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_sandbox.oci.store.owners import Owner, parse_owner

if TYPE_CHECKING:
    from collections.abc import Mapping


class Record(NamedTuple):
    """What was started. Times are POSIX seconds.

    `owner` is the supervisor's process, `client` that of the command that started it. `remove`:
    nothing is to be left at its end. `detached`: it goes on without that command; else it ends with
    it. From `pid` (the host's) on the fields are filled when it runs.
    """

    id: str
    owner: Owner
    image: str
    command: tuple[str, ...]
    created: float
    client: Owner
    name: str = ""
    digest: str = ""
    platform: str = ""
    detached: bool = False
    remove: bool = False
    interactive: bool = False
    tty: bool = False
    network: str = "none"
    user: str = ""
    cwd: str = "/"
    hostname: str = ""
    engine: str = ""
    rootless: bool = False
    cgroups_base: str = ""
    room: str = ""
    no_new_privileges: bool = False
    limits: Mapping[str, Any] = MappingProxyType({})
    mounts: tuple[str, ...] = ()
    timeout: float | None = None
    stop_signal: int = 15
    pid: int = 0
    pid_started: int = 0
    started: float = 0.0
    ports: tuple[str, ...] = ()
    env: tuple[str, ...] = ()

    def forgotten(self) -> bool:
        """Whether the command that waits for its end was killed: nobody wants to know of it."""
        return not self.detached and self.client.is_dead(0.0)

    def document(self) -> dict[str, Any]:
        """As JSON writes it."""
        owners = {"owner": self.owner.document(), "client": self.client.document()}
        return {**self._asdict(), **owners, "limits": dict(self.limits)}

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Record:
        """The opposite. Raises KeyError, TypeError or ValueError for something else."""
        values = {name: value for name, value in found.items() if name in cls._fields}
        for name in ("owner", "client"):
            values[name] = parse_owner(values[name])
        for name in ("command", "mounts", "ports", "env"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


class Ending(NamedTuple):
    """How a sandbox ended: its exit status as a shell tells it (128 + n for a signal).

    `reason` is "" for an end of its own, `timeout`, `memory` (the kernel killed it for that), or
    `lost` (its supervisor was killed, and it with that).
    """

    code: int
    time: float
    reason: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON writes it."""
        return self._asdict()

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Ending:
        """The opposite. Raises KeyError or ValueError."""
        return cls(int(found["code"]), float(found["time"]), str(found.get("reason", "")))


def shell_status(code: int) -> int:
    """128 + n for a process that signal n ended (os.waitstatus_to_exitcode gives -n)."""
    return code if code >= 0 else 128 - code
