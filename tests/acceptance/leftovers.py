"""What runs have on an engine, and what they leave there: the same questions to every engine."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.oci import leavings
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pytest_sandbox.runtimes.docker import DockerRuntime
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

LABEL = "org.pytest-sandbox"
BASE = "docker.io/library/debian:trixie-slim"

on = {
    name: pytest.mark.parametrize("engine", [name], indirect=True, ids=[name])
    for name in ("oci", "docker")
}
"""Marks of tests that run on one engine only."""


class Leftovers(Protocol):
    """Questions about an engine."""

    def running(self, runs: Collection[str]) -> dict[str, int]:
        """The sandboxes of these runs that are there, each with its owner's pid."""
        ...

    def present(self, names: Collection[str]) -> list[str]:
        """Which of these sandboxes are there in any state."""
        ...

    def of_runs(self, runs: Collection[str]) -> list[str]:
        """Everything that belongs to these runs."""
        ...

    def builds(self, word: str, owner: int) -> list[str]:
        """Processes of image builds of the process `owner` that run a command with `word`."""
        ...

    def torn(self) -> set[str]:
        """What builds that did not end well have left."""
        ...

    def foreign(self) -> contextlib.AbstractContextManager[str]:
        """A sandbox of somebody else, which must stay."""
        ...


class Docker:
    """Through Docker's interface."""

    def __init__(self, engine: DockerRuntime) -> None:
        self._client = engine.client

    def running(self, runs: Collection[str]) -> dict[str, int]:
        filters = {"label": [f"{LABEL}=1"], "status": "running"}
        return {
            entry["Id"]: int(entry["Labels"][f"{LABEL}.pid"])
            for entry in self._client.containers(filters=filters)
            if entry["Labels"].get(f"{LABEL}.run") in runs
        }

    def present(self, names: Collection[str]) -> list[str]:
        return [e["Id"] for e in self._client.containers(all=True) if e["Id"] in names]

    def of_runs(self, runs: Collection[str]) -> list[str]:
        found = []
        filters = {"label": [f"{LABEL}=1"]}
        for kind, entries in (
            ("container", self._client.containers(all=True, filters=filters)),
            ("image", self._client.images(all=True, filters=filters)),
            ("network", self._client.networks(filters=filters)),
        ):
            found += [
                f"{kind} {entry['Id'][:19]}"
                for entry in entries
                if (entry.get("Labels") or {}).get(f"{LABEL}.run") in runs
            ]
        return found

    def builds(self, word: str, owner: int) -> list[str]:
        del owner
        return [
            entry["Id"]
            for entry in self._client.containers()
            if "apt-get" in entry["Command"]
            and word in str(self._client.inspect_container(entry["Id"])["Config"]["Cmd"])
        ]

    def torn(self) -> set[str]:
        filters = {"dangling": True, "label": [f"{LABEL}.hash"]}
        return {entry["Id"] for entry in self._client.images(filters=filters)}

    @contextlib.contextmanager
    def foreign(self) -> Iterator[str]:
        name = f"pytest-sandbox-{os.getpid()}-1"
        made = self._client.create_container(BASE, ["true"], name=name)["Id"]
        try:
            yield made
        finally:
            self._client.remove_container(made, force=True)


class Oci:
    """In the store, in the control groups and among the processes."""

    def __init__(self, engine: OciRuntime) -> None:
        self._engine = engine
        self._root = engine.store.root

    def running(self, runs: Collection[str]) -> dict[str, int]:
        return {
            name: owner.pid
            for name, owner, _ in leavings.sandboxes(self._root)
            if owner.run in runs and (self._root / "sandboxes" / name / "upper").exists()
        }

    def present(self, names: Collection[str]) -> list[str]:
        return [
            name
            for name in names
            if (self._root / "sandboxes" / name).exists()
            or self._engine.machine.access.cgroups.paths(name).exists()
        ]

    def of_runs(self, runs: Collection[str]) -> list[str]:
        found = [
            f"sandbox {name}"
            for name, owner, _ in leavings.sandboxes(self._root)
            if owner.run in runs
        ]
        return found + [
            f"image {image.reference}"
            for image in self._engine.store.images()
            if image.labels.get(f"{LABEL}.run") in runs
        ]

    def builds(self, word: str, owner: int) -> list[str]:
        found = []
        for pid in descendants(owner):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if "apt-get" in words and word in words:
                    found.append(str(pid))
        return found

    def torn(self) -> set[str]:
        """Work, leases and layers of dead builds; those of builds that live may be among them."""
        store = self._engine.store
        used = {key for image in store.images() for key in image.keys}
        found = {str(path) for name in ("tmp", "leases") for path in (store.root / name).iterdir()}
        found |= {str(path) for path in (store.root / "owners").glob("ps-build-*")}
        return found | {key for key in store.layers.all() if key not in used}

    @contextlib.contextmanager
    def foreign(self) -> Iterator[str]:
        spec = SandboxSpec(BASE, Target("linux", host_arch(), "debian"), Limits())
        system = self._engine.start(spec, current_owner(f"foreign-{os.getpid()}"))
        try:
            yield system.id
        finally:
            system.close()


def descendants(pid: int) -> dict[int, str]:
    """Every process below `pid`, itself included, with its start time: pids are used again."""
    found, todo = {}, [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            found[one] = started(one)
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(word) for word in (task / "children").read_text().split()]
    return found


def started(pid: int) -> str:
    """When a process was started, in clock ticks. Raises OSError for none."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]


def alive(processes: dict[int, str]) -> list[int]:
    """Which of them are still there; one that only waits to be reaped is not."""
    left = []
    for pid, when in processes.items():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
            fields = text.split()
            if fields[19] == when and fields[0] not in {"Z", "X"}:
                left.append(pid)
    return left


def files_of_runs(runs: Collection[str]) -> list[str]:
    """Folders for FIFOs that these runs left."""
    found = []
    for path in Path(tempfile.gettempdir()).glob("pytest-sandbox-*"):
        try:
            owner = json.loads((path / "owner.json").read_text())
        except (OSError, ValueError):
            continue
        if owner["run"] in runs:
            found.append(str(path))
    return found


def rooms_of(pids: Collection[int]) -> list[str]:
    """Mount points of the supervisors that these processes had."""
    return [
        str(path)
        for place in ("/tmp", "/run", "/var/tmp")
        for path in Path(place).glob("pytest-sandbox-room-*")
        if path.name.split("-")[4:5] in [[str(pid)] for pid in pids]
    ]
