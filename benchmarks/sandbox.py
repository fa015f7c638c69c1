"""One sandbox: start and end, run a command, list changes, fork - beside docker's command line, the
docker SDK and testcontainers.

All start with the same limits, the same init and no network, from the same image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import Bar, Contest, interleave

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession

LIMIT_EXEC = 20.0
BATCH = 5
"""Commands a turn when commands are measured: a test runs several, one after another."""
MEMORY, CPUS, PIDS = 2 << 30, 2, 100
MARKER = "/var/tmp/marker"
WRITES = f"echo forked >{MARKER}; rm -f /etc/issue; touch /etc/motd"
FAST, SLOW = "pytest-sandbox", "pytest-sandbox, no fast path"
CLI, SDK, TC = "docker command line", "docker SDK", "testcontainers"


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Four contests; every candidate checks what it got, so that none wins by doing nothing."""
    rounds = given.rounds or 20
    with ExitStack() as stack:
        peers = Peers(stack, given.image or "")
        yield peers.contest("sandbox: start, run `true`, remove", peers.whole(), rounds)
        commands = peers.contest(f"sandbox: run `true` ({BATCH} a turn)", peers.run_true(), rounds)
        ratio = commands.ratio(SDK, FAST)
        commands.bars.append(
            Bar("commands against the SDK's exec_run", ratio, LIMIT_EXEC, least=True)
        )
        yield commands
        yield peers.contest("sandbox: list what changed", peers.changes(), rounds)
        yield peers.contest(
            "sandbox: fork it, read a file of it, remove the fork", peers.fork(), rounds
        )


@contextmanager
def session(runtime: Callable[[str], Any] | None = None) -> Iterator[RunSession]:
    """A run of our own, as the plugin makes one; nothing of it is left afterwards."""
    from pytest_sandbox.session import RunSession
    from pytest_sandbox.settings import Settings

    extra: dict[str, Any] = {} if runtime is None else {"find": runtime}
    run = RunSession(Settings(), Path.cwd(), uuid.uuid4().hex, **extra)
    try:
        yield run
    finally:
        run.close()


class Peers:
    """The candidates: what each one needs is made once and ends with `stack`."""

    def __init__(self, stack: ExitStack, image: str) -> None:
        import docker

        from pytest_sandbox.runtimes.docker import DockerRuntime

        self.fast = stack.enter_context(session())
        endpoint = self.fast.info.endpoint
        self.slow = stack.enter_context(
            session(lambda name: DockerRuntime(endpoint, fast_path=False))  # noqa: ARG005
        )
        self.keywords = {"image": image} if image else {}
        self.systems = {FAST: self.open(self.fast), SLOW: self.open(self.slow)}
        stack.callback(lambda: [system.close() for system in self.systems.values()])
        if not self.systems[FAST].system.fast:  # type: ignore[attr-defined]
            sys.exit("sandbox: the fast path does not work on this engine")
        self.image = self.systems[FAST].image
        self.skipped: dict[str, str] = {}
        self.client = docker.DockerClient(base_url=endpoint)
        stack.callback(self.client.close)
        self.held = self.client.containers.run(
            self.image, ["sleep", "infinity"], detach=True, **self.options()
        )
        stack.callback(lambda: self.held.remove(force=True))
        self.docker = shutil.which("docker")
        if self.docker is None:
            self.skipped[CLI] = "no docker on PATH"
        self.environ = {**os.environ, "DOCKER_HOST": endpoint}
        self.testcontainers = self._testcontainers(stack, endpoint)
        for system in self.systems.values():
            system.run(["sh", "-c", WRITES])
        self.held.exec_run(["sh", "-c", WRITES])
        if self.testcontainers is not None:
            self.testcontainers.exec(["sh", "-c", WRITES])

    def contest(self, title: str, all_of_them: dict[str, Any], rounds: int) -> Contest:
        """Those candidates that can take part."""
        present = {name: call for name, call in all_of_them.items() if name not in self.skipped}
        return Contest(title, interleave(present, rounds), skipped=dict(self.skipped))

    @staticmethod
    def options() -> dict[str, Any]:
        """The SDK's words for what our sandboxes have by default."""
        limits = {"mem_limit": MEMORY, "memswap_limit": MEMORY, "pids_limit": PIDS}
        return {"network_mode": "none", "init": True, "nano_cpus": CPUS * 10**9, **limits}

    def open(self, run: RunSession) -> Sandbox:
        """A sandbox as the fixture makes one."""
        from pytest_sandbox.sandbox import open_sandbox

        limits = {"memory": MEMORY, "cpus": CPUS, "pids": PIDS, "timeout": 3600}
        return open_sandbox(run, {**self.keywords, **limits})

    def command(self, *words: str) -> str:
        """Run docker's command line; what it printed."""
        argv = [str(self.docker), *words]
        done = subprocess.run(argv, env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout

    def command_run(self, image: str, *words: str) -> str:
        """`docker run --rm` with the same limits."""
        limits = ["--memory", str(MEMORY), "--memory-swap", str(MEMORY), "--cpus", str(CPUS)]
        limits += ["--pids-limit", str(PIDS), "--network", "none", "--init"]
        return self.command("run", "--rm", *limits, image, *words)

    def _testcontainers(self, stack: ExitStack, endpoint: str) -> Any:
        os.environ["DOCKER_HOST"] = endpoint  # the only way to tell it
        # Its reaper is one more container, started once, from an image that needs a registry.
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
        try:
            import testcontainers.core.container  # noqa: F401
        except ImportError:
            self.skipped[TC] = "not installed (dependency group bench)"
            return None
        held = self.new_testcontainer()
        held.start()
        stack.callback(held.stop)
        return held

    def new_testcontainer(self, image: str = "") -> Any:
        """A container of testcontainers that waits to be used."""
        from testcontainers.core.container import DockerContainer

        made = DockerContainer(image or self.image).with_command("sleep infinity")
        return made.with_kwargs(**self.options())

    # -- start, run, remove --------------------------------------------------------------------

    def whole(self) -> dict[str, Callable[[], None]]:
        """A throwaway system for one command."""

        def ours(run: RunSession) -> None:
            sandbox = self.open(run)
            _expect(sandbox.run(["true"]).ok)
            sandbox.system.close()  # waited for here; a test does not wait
            sandbox.close()

        def sdk() -> None:
            self.client.containers.run(self.image, ["true"], remove=True, **self.options())

        def testcontainers() -> None:
            with self.new_testcontainer() as made:
                _expect(made.exec(["true"]).exit_code == 0)

        return {
            FAST: lambda: ours(self.fast),
            SLOW: lambda: ours(self.slow),
            CLI: lambda: _expect(self.command_run(self.image, "true") == ""),
            SDK: sdk,
            TC: testcontainers,
        }

    # -- a command -----------------------------------------------------------------------------

    def run_true(self) -> dict[str, Callable[[], float]]:
        """One command in a system that runs already."""
        fast, slow = self.systems[FAST], self.systems[SLOW]
        return {
            FAST: _each(lambda: fast.run(["true"]).ok),
            SLOW: _each(lambda: slow.run(["true"]).ok),
            CLI: _each(lambda: self.command("exec", self.held.id, "true") == ""),
            SDK: _each(lambda: self.held.exec_run(["true"]).exit_code == 0),
            TC: _each(lambda: self.testcontainers.exec(["true"]).exit_code == 0),
        }

    # -- changes -------------------------------------------------------------------------------

    def changes(self) -> dict[str, Callable[[], None]]:
        """The paths that differ from the image."""

        def raw(container: Any) -> bool:
            return any(entry["Path"] == MARKER for entry in container.diff())

        fast = self.systems[FAST]
        return {
            FAST: lambda: _expect(MARKER in fast.changes().added),
            CLI: lambda: _expect(f"A {MARKER}\n" in self.command("diff", self.held.id)),
            SDK: lambda: _expect(raw(self.held)),
            TC: lambda: _expect(raw(self.testcontainers.get_wrapped_container())),
        }

    # -- fork ----------------------------------------------------------------------------------

    def fork(self) -> dict[str, Callable[[], float]]:
        """A second system from the first one's files. Removal of the image is not timed."""

        def ours() -> float:
            began = time.perf_counter()
            child = self.systems[FAST].fork()
            _expect(child.run(["cat", MARKER]).stdout == "forked\n")
            child.system.close()
            took = time.perf_counter() - began
            child.close()
            self.fast.runtime.remove_image(child.image)
            return took

        def peer(container: Any, start: Callable[[str], str]) -> float:
            name = f"benchmark-fork:{uuid.uuid4().hex[:12]}"
            began = time.perf_counter()
            if container is None:
                self.command("commit", self.held.id, name)
            else:
                container.commit(*name.split(":"))
            try:
                said = start(name)
                took = time.perf_counter() - began
            finally:
                self.client.images.remove(name, force=True)
            _expect(said == "forked\n")
            return took

        def sdk(name: str) -> str:
            run = self.client.containers.run
            return run(name, ["cat", MARKER], remove=True, **self.options()).decode()

        def testcontainers(name: str) -> str:
            with self.new_testcontainer(name) as made:
                return made.exec(["cat", MARKER]).output.decode()

        return {
            FAST: ours,
            CLI: lambda: peer(None, lambda name: self.command_run(name, "cat", MARKER)),
            SDK: lambda: peer(self.held, sdk),
            TC: lambda: peer(self.testcontainers.get_wrapped_container(), testcontainers),
        }


def _expect(held: bool) -> None:
    if not held:
        msg = "a candidate did not do what is measured"
        raise RuntimeError(msg)


def _each(call: Callable[[], bool]) -> Callable[[], float]:
    """A turn of BATCH calls; seconds of one."""

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(BATCH):
            _expect(call())
        return (time.perf_counter() - began) / BATCH

    return turn


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("sandbox",)))
