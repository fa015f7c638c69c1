"""What `run` was asked for."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.oci.platforms import Platform
    from pytest_sandbox.oci.pull import Policy
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.runtimes.oci.order import MountOrder


class Request(NamedTuple):
    """One sandbox, as its caller describes it.

    `command` replaces the image's Cmd. `env` holds NAME=VALUE, or NAME alone to remove it. `memory`
    is in bytes, `cpus` in cores, `timeout` in seconds; None is no limit. `weak`: a limit that no
    control group can set may be enforced by other means. `tmpfs` is path -> bytes.
    `engine` is runc, crun or a path of one; without it, what works.
    """

    image: Reference
    command: tuple[str, ...] = ()
    platform: Platform | None = None
    pull: Policy = "missing"
    name: str = ""
    detached: bool = False
    remove: bool = False
    interactive: bool = False
    tty: bool = False
    env: tuple[str, ...] = ()
    user: str = ""
    cwd: str = ""
    entrypoint: tuple[str, ...] | None = None
    hostname: str = ""
    network: str = "none"
    ports: tuple[str, ...] = ()
    mounts: tuple[MountOrder, ...] = ()
    tmpfs: Mapping[str, int] = MappingProxyType({})
    read_only: bool = False
    init: bool = True
    no_new_privileges: bool = False
    stop_signal: str = ""
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    weak: bool = False
    timeout: float | None = None
    engine: str = ""
    snapshotter: str = "auto"
