"""Peers behind an engine: docker's command line and SDK, testcontainers, pytest_container, and
podman. All start with the limits that our sandboxes have, an init, and no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.debian import NAME
from benchmarks.field import Field, expect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Turns = dict[str, Callable[[], float | None]]

CLI, SDK, TC, PC, PODMAN = (
    "docker command line",
    "docker SDK",
    "testcontainers",
    "pytest_container",
    "podman command line",
)
ENDPOINT = "unix:///var/run/docker.sock"


class Daemons:
    """Who is there, and the image that all of them start: the benchmark's own base."""

    def __init__(self, field: Field, given: argparse.Namespace) -> None:
        self.field = field
        self.skipped: dict[str, str] = {}
        self.endpoint = os.environ.setdefault("DOCKER_HOST", ENDPOINT)
        self.image = NAME
        self.client: Any = None
        self._held: dict[str, Any] = {}
        try:
            import docker

            self.client = docker.DockerClient(base_url=self.endpoint)
            self.client.ping()
        except Exception as wrong:  # the SDK raises what its transport raises
            why = f"no docker engine answers ({type(wrong).__name__})"
            self.skipped |= dict.fromkeys((CLI, SDK, TC, PC), why)
        else:
            field.stack.callback(self.client.close)
            if shutil.which("docker") is None:
                self.skipped |= dict.fromkeys((CLI, PC), "no docker on PATH")
            self._find_image(given)
            self._look_for_libraries()
        self.podman: list[str] = []
        self._find_podman()

    def _find_image(self, given: argparse.Namespace) -> None:
        from pytest_sandbox.images.families import load_families

        if not given.base:
            self.image = given.image or load_families()["debian"].image
            return
        repository, _, tag = NAME.partition(":")
        with self.field.tar.open("rb") as file:
            self.client.api.import_image_from_stream(file, repository=repository, tag=tag)
        self.field.stack.callback(lambda: self.client.images.remove(NAME, force=True))

    def _look_for_libraries(self) -> None:
        # testcontainers' reaper is one more container, from an image that needs a registry.
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
        os.environ["CONTAINER_RUNTIME"] = "docker"
        lacking = "not installed (dependency group bench)"
        try:
            import testcontainers.core.container  # noqa: F401
        except ImportError:
            self.skipped[TC] = lacking
        try:
            import pytest_container  # noqa: F401
        except ImportError:
            self.skipped[PC] = lacking

    def _find_podman(self) -> None:
        if shutil.which("podman") is None:
            self.skipped[PODMAN] = "no podman on PATH"
            return
        run = tempfile.mkdtemp(prefix="p-", dir="/tmp")  # Podman takes no longer name
        self.field.stack.callback(shutil.rmtree, run, ignore_errors=True)
        engine = ["--runtime", shutil.which("runc", path=f"{os.defpath}:/usr/sbin") or "runc"]
        where = ["--root", str(self.field.temp / "podman"), "--runroot", run]
        self.podman = ["podman", *engine, "--cgroup-manager=cgroupfs", *where]
        self.field.stack.callback(self._forget_podman)
        try:
            self.command(*self.podman, "import", "-q", str(self.field.tar), NAME)
            self.podman_run("true")
        except subprocess.CalledProcessError as wrong:
            said = wrong.stderr.strip().splitlines() or [f"status {wrong.returncode}"]
            self.skipped[PODMAN] = said[-1][:200]

    def _forget_podman(self) -> None:
        # Its storage may be mounted onto itself.
        with suppress(OSError):
            subprocess.run(
                ["umount", "-l", self.field.temp / "podman" / "overlay"],
                capture_output=True,
                check=False,
            )
        shutil.rmtree(self.field.temp / "podman", ignore_errors=True)

    # --- words ------------------------------------------------------------------------------

    def command(self, *argv: str) -> str:
        """Run a program to its end; what it printed."""
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        return done.stdout

    def words(self) -> list[str]:
        """Our limits, an init and no network, as docker's command line has them."""
        limits = self.field.limits
        cpus = min(limits.cpus, len(os.sched_getaffinity(0)))
        memory = str(limits.memory)
        words = ["--memory", memory, "--memory-swap", memory, "--cpus", str(cpus)]
        return [*words, "--pids-limit", str(limits.pids), "--network", "none", "--init"]

    def options(self) -> dict[str, Any]:
        """The same in the SDK's words."""
        limits = self.field.limits
        cpus = min(limits.cpus, len(os.sched_getaffinity(0)))
        memory = {"mem_limit": limits.memory, "memswap_limit": limits.memory}
        also = {"pids_limit": limits.pids, "nano_cpus": int(cpus * 10**9)}
        return {"network_mode": "none", "init": True, **memory, **also}

    def docker_run(self, image: str, *argv: str) -> str:
        """`docker run --rm`."""
        return self.command("docker", "run", "--rm", *self.words(), image, *argv)

    def podman_run(self, *argv: str) -> str:
        """`podman run --rm`, with rlimits that root may set on every machine."""
        words = ["--network", "none", "--ulimit=nofile=1024:4096", "--ulimit=nproc=1024:1024"]
        limits = self.field.limits
        words += ["--pids-limit", str(limits.pids), "--memory", str(limits.memory)]
        return self.command(*self.podman, "run", "--rm", *words, NAME, *argv)

    def testcontainer(self, image: str = "") -> Any:
        """A container of testcontainers that waits to be used."""
        from testcontainers.core.container import DockerContainer

        made = DockerContainer(image or self.image).with_command("sleep infinity")
        return made.with_kwargs(**self.options())

    def launcher(self) -> Any:
        """A container of pytest_container, as its fixture starts one."""
        from pytest_container.container import Container, ContainerLauncher
        from pytest_container.runtime import DockerRuntime

        container = Container(
            url=f"containers-storage:{self.image}",
            # Its default, an interactive bash, ignores the signal to stop: ten seconds more.
            custom_entry_point="/bin/sleep",
            extra_entrypoint_args=["infinity"],
            extra_launch_args=self.words(),
        )
        return ContainerLauncher(container, DockerRuntime(), Path.cwd())

    # --- turns ------------------------------------------------------------------------------

    def present(self, turns: Turns) -> Turns:
        """Those that can take part."""
        return {name: call for name, call in turns.items() if name not in self.skipped}

    def whole(self) -> Turns:
        """Create, `true`, remove."""

        def sdk() -> None:
            run = self.client.containers.run
            expect(run(self.image, ["true"], remove=True, **self.options()) == b"")

        def testcontainers() -> None:
            with self.testcontainer() as made:
                expect(made.exec(["true"]).exit_code == 0)

        def pytest_container() -> None:
            with self.launcher() as launcher:
                launcher.launch_container()
                expect(launcher.container_data.connection.run("true").succeeded)

        return self.present(
            {
                CLI: lambda: expect(self.docker_run(self.image, "true") == ""),
                SDK: sdk,
                TC: testcontainers,
                PC: pytest_container,
                PODMAN: lambda: expect(self.podman_run("true") == ""),
            }
        )

    def held(self) -> Any:
        """One container that waits for commands, of docker's."""
        if "docker" not in self._held:
            waiting = ["sleep", "infinity"]
            made = self.client.containers.run(self.image, waiting, detach=True, **self.options())
            self.field.stack.callback(lambda: made.remove(force=True))
            self._held["docker"] = made
        return self._held["docker"]

    def commands(self) -> Turns:
        """`true` in a container that runs already."""
        turns: Turns = {}
        if self.client is not None and SDK not in self.skipped:
            held = self.held()
            turns[CLI] = lambda: expect(self.command("docker", "exec", held.id, "true") == "")
            turns[SDK] = lambda: expect(held.exec_run(["true"]).exit_code == 0)
        if TC not in self.skipped:
            made = self.testcontainer()
            made.start()
            self.field.stack.callback(made.stop)
            turns[TC] = lambda: expect(made.exec(["true"]).exit_code == 0)
        if PC not in self.skipped:
            launcher = self.field.stack.enter_context(self.launcher())
            launcher.launch_container()
            connection = launcher.container_data.connection
            turns[PC] = lambda: expect(connection.run("true").succeeded)
        if PODMAN not in self.skipped:
            words = ["run", "-d", "--network", "none", "--ulimit=nofile=1024:4096"]
            words += ["--ulimit=nproc=1024:1024", NAME, "sleep", "infinity"]
            name = self.command(*self.podman, *words).strip()
            remove = [*self.podman, "rm", "-f", "-t", "0", name]
            self.field.stack.callback(self.command, *remove)
            turns[PODMAN] = lambda: expect(self.command(*self.podman, "exec", name, "true") == "")
        return self.present(turns)
