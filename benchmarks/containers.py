"""A container that runs `true`: ours as a library and as a command, beside `runc run` of the same
tree with the same config.json, docker run and podman run.

One after the other, then sixteen at once. `runc run` gets its root file system mounted: each of its
turns is the process alone. Ours make an upper folder, mount, write config.json and remove it all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import Bar, Contest, environment, interleave, run_process
from benchmarks.debian import base_tar
from benchmarks.pull import installed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pytest_sandbox.oci.supervisor import Supervisor

LIBRARY, COMMAND, RUNC, DOCKER, PODMAN = (
    "pytest-sandbox, library",
    "pytest-sandbox run --rm",
    "runc run",
    "docker run --rm",
    "podman run --rm",
)
SYSTEM = "pytest-sandbox, library: start, run, close"
LIMITS = {LIBRARY: 1.3, COMMAND: 5.0}
AT_ONCE = 16
SEVERAL = 100
"""So many containers are one turn when sixteen run at once."""
NAME = "bench/debian:base"
ID = "bench-probe"


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Single ones, in turns; then three turns of a hundred, sixteen at once."""
    if os.geteuid() != 0:
        sys.exit("containers: plain runc needs root for its mounts")
    with ExitStack() as stack:
        # The mounts of plain runc's trees are this process's own, and end with it.
        _own_mounts()
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp")))
        temp.chmod(0o755)
        field = Field(stack, temp, given.image or "")
        before = left_over(field.data, field.runtime.supervisor)
        rounds = given.rounds or 40
        # The daemons' tidying up would fall on the others: their turns are apart.
        judged, others = field.judged(), field.others()
        single = interleave(judged, rounds, warmup=2)
        yield _judged(Contest("containers: one that runs `true`, whole", single))
        many = {name: field.several(call) for name, call in judged.items()}
        turns = interleave(many, max(3, rounds // 8), warmup=1)
        contest = Contest(f"containers: {SEVERAL} that run `true`, {AT_ONCE} at once", turns)
        left = sorted(left_over(field.data, field.runtime.supervisor) - before)
        contest.notes += [f"left: {line}" for line in left[:20]]
        contest.bars.append(Bar("things left behind by ours", len(left), 0, unit=""))
        yield _judged(contest)
        yield Contest(
            "containers: one that runs `true`, others",
            interleave(others, max(3, rounds // 2)),
            skipped=dict(field.skipped),
        )


def _judged(contest: Contest) -> Contest:
    for name, most in LIMITS.items():
        contest.bars.insert(0, Bar(f"{name} against runc run", contest.ratio(name, RUNC), most))
    return contest


def _own_mounts() -> None:
    from pytest_sandbox.oci import linux

    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)


class Field:
    """The tree, and the candidates with folders of their own; all ends with `stack`."""

    def __init__(self, stack: ExitStack, temp: Path, image: str) -> None:
        from pytest_sandbox.runtimes.oci.runtime import OciRuntime
        from pytest_sandbox.targets import Target, host_arch

        self.temp = temp
        self.image = image
        self.data = temp / "data"
        self.skipped: dict[str, str] = {}
        self.environ = {
            **environment(temp),
            "PYTHONPATH": str(installed(temp)),
            "PYTEST_SANDBOX_DATA": str(self.data),
        }
        self.target = Target("linux", host_arch(), "debian")
        self.runtime = OciRuntime(environ=self.environ)
        stack.callback(self.close)
        tar = temp / "base.tar"
        tar.write_bytes(base_tar(image))
        with tar.open("rb") as file:
            self.runtime.load_rootfs(file, NAME, self.target, {})
        found = self.runtime.image(NAME)
        assert found is not None
        self.stored = found
        stack.callback(self.clear)
        self.bundles: SimpleQueue[Path] = SimpleQueue()
        self.numbers = count()
        spec, etc = self.probe()
        for number in range(AT_ONCE):
            self.bundles.put(self.bundle(number, spec, etc))
        self.podman_run: list[str] = []
        if shutil.which("podman"):
            run = tempfile.mkdtemp(prefix="p-", dir="/tmp")  # Podman takes no longer name
            stack.callback(shutil.rmtree, run, ignore_errors=True)
            runc = ["--runtime", shutil.which("runc") or "runc"]  # the same engine as ours
            self.podman_run = ["podman", *runc, "--root", str(temp / "podman"), "--runroot", run]
            self.can(PODMAN, *self.podman_run, "import", "-q", str(tar), NAME)
            self.can(PODMAN, *self.podman_words())
        else:
            self.skipped[PODMAN] = "no podman on PATH"

    def can(self, name: str, *argv: str) -> None:
        """Note why a candidate cannot take part."""
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode and name not in self.skipped:
            self.skipped[name] = (done.stderr.strip().splitlines() or ["it failed"])[-1]

    def close(self) -> None:
        """End our supervisor."""
        self.runtime.close()

    def clear(self) -> None:
        """Remove the store, whose files belong to other ids, and what is mounted."""
        from pytest_sandbox.oci import linux
        from pytest_sandbox.oci.ids import find_ids
        from pytest_sandbox.oci.supervisor import Supervisor

        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        for place in reversed([line.split()[4] for line in mounts]):
            if place.startswith(f"{self.temp}/"):
                linux.umount(place, linux.MNT_DETACH)
        keeper = Supervisor(find_ids)
        folder = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            job = "pytest_sandbox.oci.layers.jobs:remove"
            names = [path.name for path in self.data.iterdir()]
            keeper.call(job, {"names": names}, [folder], where="host")
        finally:
            os.close(folder)
            keeper.close()

    # --- plain runc -------------------------------------------------------------------------

    def probe(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The config.json of one of ours that runs, and the files of /etc that it gets."""
        supervisor = self.runtime.supervisor
        order = self.runtime.machine.order(
            self.stored, ID, argv=("sleep", "1000"), hostname="sandbox"
        )
        null = os.open(os.devnull, os.O_RDWR)
        channel = supervisor.open(
            "pytest_sandbox.runtimes.oci.launch:start", order.document(), [null] * 3
        )
        os.close(null)
        try:
            channel.result()
            room = Path(f"/proc/{supervisor.pid}/root{supervisor.room}/{ID}")
            spec = json.loads((room / "config.json").read_text())
            etc = {file.name: file.read_bytes() for file in (room / "etc").iterdir()}
        finally:
            channel.signal(9)
            while (said := channel.receive()) is not None and "gone" not in said[0]:
                pass
            channel.close()
        args = spec["process"]["args"]
        args[args.index("sleep") :] = ["true"]
        return spec, etc

    def bundle(self, number: int, spec: dict[str, Any], etc: dict[str, bytes]) -> Path:
        """A bundle of the same tree, mounted already, with the same config.json."""
        from pytest_sandbox.oci import linux

        bundle = self.temp / f"bundle{number}"
        root = spec["linux"]["uidMappings"][0]["hostID"]
        for name in ("rootfs", "etc", "upper", "work"):
            (bundle / name).mkdir(parents=True)
            os.chown(bundle / name, root, root)
        for name, data in etc.items():
            (bundle / "etc" / name).write_bytes(data)
            os.chown(bundle / "etc" / name, root, root)
        lower = ":".join(
            str(self.runtime.store.layer(key).diff) for key in reversed(self.stored.keys)
        )
        options = f"lowerdir={lower},upperdir={bundle}/upper,workdir={bundle}/work"
        linux.mount(
            "overlay",
            bundle / "rootfs",
            "overlay",
            linux.MS_NODEV,
            f"{options},userxattr,index=off,metacopy=off,volatile",
        )
        text = json.dumps(spec).replace(spec["root"]["path"], str(bundle / "rootfs"))
        text = re.sub(rf'"[^"]*/{ID}/etc/', f'"{bundle}/etc/', text)
        own = json.loads(text)
        # In the same group of all sandboxes: its share of the CPUs is for both.
        parent = Path(spec["linux"]["cgroupsPath"]).parent
        own["linux"]["cgroupsPath"] = str(parent / f"bench-{os.getpid()}-{number}")
        (bundle / "config.json").write_text(json.dumps(own))
        return bundle

    # --- candidates -------------------------------------------------------------------------

    def judged(self) -> dict[str, Callable[[], float | None]]:
        """Name -> what runs one container to its end."""
        return {LIBRARY: self.library, RUNC: self.runc, COMMAND: self.command}

    def others(self) -> dict[str, Callable[[], float | None]]:
        """For information, those that can take part."""
        if DOCKER not in self.skipped and shutil.which("docker") is None:
            self.skipped[DOCKER] = "no docker on PATH"
        every: dict[str, Callable[[], float | None]] = {
            SYSTEM: self.system,
            LIBRARY: self.library,
            DOCKER: self.docker,
            PODMAN: self.podman,
        }
        return {name: call for name, call in every.items() if name not in self.skipped}

    def several(self, call: Callable[[], float | None]) -> Callable[[], None]:
        """A hundred of them, sixteen at once."""

        def run() -> None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for done in [pool.submit(call) for _ in range(SEVERAL)]:
                    done.result()

        return run

    def run(self, *argv: str) -> float:
        return run_process(argv, cwd=self.temp, env=self.environ, expect={0})

    def library(self) -> None:
        from pytest_sandbox.runtimes.oci.once import run_once

        status = run_once(self.runtime, self.stored, ["true"])
        if status:
            sys.exit(f"containers: `true` in our sandbox ended with {status}")

    def system(self) -> None:
        """As the fixture has it: a sandbox that waits for commands."""
        from pytest_sandbox.limits import Limits
        from pytest_sandbox.runtimes.base import SandboxSpec
        from pytest_sandbox.runtimes.owner import current_owner

        spec = SandboxSpec(NAME, self.target, Limits())
        system = self.runtime.start(spec, current_owner("bench"))
        try:
            system.run(["true"])
        finally:
            system.close()

    def command(self) -> float:
        script = "import sys; from pytest_sandbox.cli import main; sys.exit(main())"
        return self.run(sys.executable, "-c", script, "run", "--rm", NAME, "true")

    def runc(self) -> float:
        bundle = self.bundles.get()
        try:
            words = ["--root", f"{self.temp}/states", "run", "--no-new-keyring"]
            name = f"plain-{next(self.numbers)}"
            return self.run("runc", *words, "--bundle", str(bundle), name)
        finally:
            self.bundles.put(bundle)

    def docker(self) -> float:
        from pytest_sandbox.images.families import load_families

        image = self.image or load_families()["debian"].image
        return self.run("docker", "run", "--rm", "--init", "--network=none", image, "true")

    def podman_words(self) -> list[str]:
        # Its own rlimits are higher than root may set on every machine.
        limits = ["--ulimit=nofile=1024:4096", "--ulimit=nproc=1024:1024"]
        return [*self.podman_run, "run", "--rm", "--network=none", *limits, NAME, "true"]

    def podman(self) -> float:
        return self.run(*self.podman_words())


def left_over(data: Path, keeper: Supervisor) -> set[str]:
    """What sandboxes of ours can leave: processes (and so their namespaces), namespaces that are
    held open, mounts, cgroups, rooms and files.
    """
    from pytest_sandbox.oci.cgroups import find_cgroups

    found, mine = set(), str(os.getpid())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            group = (process / "cgroup").read_text(errors="replace")
            parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == mine or str(data) in words or "/pytest-sandbox/ps-once-" in group:
            found.add(f"process {process.name} {words[:60]}")
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith(("net:", "mnt:", "user:", "pid:")):
                found.add(f"namespace {target}")
    for whose in ("1", mine, str(keeper.pid)):
        for line in Path(f"/proc/{whose}/mountinfo").read_text(errors="replace").splitlines():
            place = line.split()[4]
            if str(data) in place or place.startswith(f"{keeper.room}/"):
                found.add(f"mount {place} of {whose}")
    found |= {f"cgroup {name}" for name in find_cgroups().names() if f"-once-{mine}-" in name}
    found |= {f"room {path}" for path in Path("/tmp").glob(f"pytest-sandbox-room-*-{mine}-*")}
    for name in ("sandboxes", "owners", "uses", "trash", "leases", "containers"):
        found |= {f"file {path}" for path in (data / "oci" / name).glob("*")}
    return found


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("containers",)))
