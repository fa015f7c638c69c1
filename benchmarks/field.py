"""Where sandboxes are measured: a Debian base in a store of its own, and our runtimes over it."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contest import environment
from benchmarks.debian import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.runtimes.base import System
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession

DIRECT = "pytest-sandbox, direct"
ENGINE = "pytest-sandbox on runc"
LAUNCHERS = {DIRECT: "direct", ENGINE: "runc"}
"""Candidate -> the launcher that it is measured with."""


class Field:
    """A temporary folder, the store in it with the base under NAME, and runtimes by candidate.

    `tar` is the plain tar of the base. All of it ends with `stack`.
    """

    def __init__(self, stack: ExitStack, tar: bytes | Path) -> None:
        from pytest_sandbox.limits import Limits
        from pytest_sandbox.targets import Target, host_arch

        folder = tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp")
        self.temp = Path(stack.enter_context(folder))
        self.temp.chmod(0o711)  # what runs in sandboxes' ids has to reach what lies below
        self.stack = stack
        self.data = self.temp / "data"
        os.environ["PYTEST_SANDBOX_DATA"] = str(self.data)
        self.environ = environment(self.temp)
        self.target = Target("linux", host_arch(), "debian")
        self.limits = Limits(timeout=3600.0)
        self._runtimes: dict[str, OciRuntime] = {}
        if isinstance(tar, Path):
            self.tar = tar
        else:
            self.tar = self.temp / "base.tar"
            self.tar.write_bytes(tar)
        stack.callback(self._clear)
        with self.tar.open("rb") as file:
            self.runtime(ENGINE).load_rootfs(file, NAME, self.target, {})

    @property
    def image(self) -> Image:
        """The base, as the store has it."""
        found = self.runtime(ENGINE).image(NAME)
        assert found is not None
        return found

    def runtime(self, candidate: str) -> OciRuntime:
        """Our runtime with that candidate's launcher, made once."""
        from pytest_sandbox.runtimes.oci.runtime import OciRuntime

        if candidate not in self._runtimes:
            made = OciRuntime(environ=self.environ, launcher=LAUNCHERS[candidate])
            self._runtimes[candidate] = made
            self.stack.callback(made.close)
        return self._runtimes[candidate]

    def start(self, candidate: str, **limits: Any) -> System:
        """A system from the base, as the fixture starts one."""
        from pytest_sandbox.runtimes.base import SandboxSpec
        from pytest_sandbox.runtimes.owner import current_owner

        spec = SandboxSpec(NAME, self.target, self.limits.override(**limits))
        return self.runtime(candidate).start(spec, current_owner("bench"))

    def whole(self, candidate: str) -> Callable[[], None]:
        """A turn: create, `true`, remove."""

        def turn() -> None:
            system = self.start(candidate)
            try:
                expect(system.run(["true"]).ok)
            finally:
                system.close()

        return turn

    def run(self, candidate: str) -> RunSession:
        """A run of the plugin's kind with that candidate's runtime."""
        runtime = self.runtime(candidate)
        return self.stack.enter_context(session(lambda _: runtime))

    def sandbox(self, run: RunSession, **keywords: Any) -> Sandbox:
        """A sandbox of a run, as the fixture makes one."""
        from pytest_sandbox.sandbox import open_sandbox

        return open_sandbox(run, {"image": NAME, "timeout": 3600, **keywords})

    def _clear(self) -> None:
        """Remove the stores: only a supervisor can, since files in them belong to other ids."""
        remove(self.data)


@contextmanager
def session(runtime: Callable[[str], Any] | None = None) -> Iterator[RunSession]:
    """A run as the plugin makes one; nothing of it is left afterwards."""
    from pytest_sandbox.session import RunSession
    from pytest_sandbox.settings import Settings

    extra: dict[str, Any] = {} if runtime is None else {"find": runtime}
    run = RunSession(Settings(), Path.cwd(), uuid.uuid4().hex, **extra)
    try:
        yield run
    finally:
        run.close()


def remove(folder: Path, names: Sequence[str] = ()) -> None:
    """Remove the entries of a folder, whatever ids they belong to."""
    from pytest_sandbox.oci.ids import find_ids
    from pytest_sandbox.oci.supervisor import Supervisor

    names = names or [path.name for path in folder.iterdir()]
    keeper = Supervisor(find_ids)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        job = "pytest_sandbox.oci.layers.jobs:remove"
        keeper.call(job, {"names": list(names)}, [descriptor], where="host")
    finally:
        os.close(descriptor)
        keeper.close()


def expect(held: bool) -> None:
    """End the benchmark where a candidate did not do what is measured."""
    if not held:
        sys.exit("a candidate did not do what is measured")
