"""One container of a Docker-compatible engine, as LiveSystem asks for it."""

from __future__ import annotations

import contextlib
from typing import IO, TYPE_CHECKING, Any

from pytest_sandbox.runtimes import docker_files, docker_records
from pytest_sandbox.runtimes.docker_exec import ExecCommand
from pytest_sandbox.runtimes.shell import Counters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pytest_sandbox.runtimes.base import Changes, PathStat, Stats
    from pytest_sandbox.runtimes.docker import DockerRuntime
    from pytest_sandbox.runtimes.job import Job
    from pytest_sandbox.runtimes.shell import Facts


class DockerContainer:
    """See the Engine protocol in live_system for what the methods mean."""

    def __init__(self, runtime: DockerRuntime, container: str, network: str) -> None:
        self.id = container
        self.network = network
        self._runtime = runtime
        self._client: Any = runtime.client

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it is gone, or the engine is
            self._client.kill(self.id, "KILL")

    def running(self) -> bool:
        return docker_records.is_running(self._client, self.id)

    def was_out_of_memory(self, seconds: float, patience: float = 0.0, known: int = 0) -> bool:
        return docker_records.was_out_of_memory(self._client, self.id, seconds, patience, known)

    def counters(self) -> Counters:
        return Counters()  # the sandbox sees its own cgroup

    def exec(self, job: Job, facts: Facts) -> ExecCommand:
        return ExecCommand(self._client, self._runtime.endpoint, self.id, job, facts)

    def stats(self) -> Stats:
        return docker_records.container_stats(self._client, self.id)

    def put(self, tar: IO[bytes], path: str) -> None:
        docker_files.put(self._client, self.id, tar, path)

    def get(self, path: str) -> tuple[PathStat, Iterable[bytes]]:
        return docker_files.get(self._client, self.id, path)

    def stat(self, path: str) -> PathStat | None:
        return docker_files.stat(self._client, self.id, path)

    def changes(self, mounted: Sequence[str]) -> Changes:
        return docker_files.changes(self._client, self.id, mounted)

    def snapshot(
        self,
        name: str | None,
        labels: Mapping[str, str],
        ours: Collection[int],  # noqa: ARG002
    ) -> str:
        return self._runtime.commit(self.id, name, labels)

    def remove(self) -> None:
        self._runtime.remove_container(self.id)
