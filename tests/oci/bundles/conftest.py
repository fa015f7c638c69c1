"""Root file systems of the tests' own, a supervisor, and runtimes that run what comes out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.oci.bundle import ContainerBundle
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.supervisor.client import Supervisor
from tests.oci.requiring import missing, program, static_busybox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0
_UNIFIED = "/sys/fs/cgroup/unified"
APPLETS = (
    "sh cat id ls env touch mkdir mount pwd stat true false sleep wc grep unshare chown hostname"
)


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A static busybox (Debian's package busybox-static)."""
    return static_busybox()


def make_root(folder: Path, busybox: Path) -> Path:
    """A tiny system: busybox, two accounts, nothing else."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for name in APPLETS.split():
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
    )
    (folder / "etc/group").write_text("root:x:0:\napp:x:1000:\nvideo:x:44:app\n")
    for name, mode in (("root", 0o700), ("tmp", 0o1777), ("data", 0o755)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    (folder / "data/seed").write_text("seed\n")
    return folder


@pytest.fixture
def tiny_root(tmp_path: Path, busybox: Path) -> Path:
    return make_root(tmp_path / "root", busybox)


@pytest.fixture
def place(supervisor: Supervisor) -> Iterator[Path]:
    """A folder that any id can walk to (pytest's own are 0700)."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-bundles-"))
    folder.chmod(0o711)
    yield folder
    remove_as_root(supervisor, folder.parent, folder.name)


def remove_as_root(supervisor: Supervisor, parent: Path, *names: str) -> None:
    """Remove what may belong to any id of sandboxes."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    job = "pytest_sandbox.oci.bundle_jobs:remove"
    try:
        supervisor.call(job, {"names": list(names)}, [descriptor], where="host")
    finally:
        os.close(descriptor)


@pytest.fixture(scope="session")
def supervisor() -> Iterator[Supervisor]:
    found = Supervisor(find_ids())
    yield found
    found.close()


@dataclass(frozen=True)
class Engine:
    """A runtime: `command` starts it, arguments follow."""

    name: str
    command: tuple[str, ...]

    def run(self, bundle: ContainerBundle, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a bundle to its end."""
        name = f"bundle-{secrets.token_hex(6)}"
        command = [*self.command, "run", "--bundle", str(bundle.path), name]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(params=["runc", "crun"])
def engine(
    request: pytest.FixtureRequest, place: Path, busybox: Path, supervisor: Supervisor
) -> Engine:
    """runc and crun, where they can start the plainest bundle there is."""
    plain = (program(request.param), "--root", str(place / "state"))
    problem = _probe(Engine(request.param, plain), place / "probe", busybox)
    if not problem:
        return Engine(request.param, plain)
    # crun refuses hybrid control groups; without the v2 tree beside them they are plain v1.
    hidden = ("unshare", "--mount", "sh", "-c", f'umount {_UNIFIED} && exec "$0" "$@"', *plain)
    if ROOT and os.path.ismount(_UNIFIED):
        found = Engine(request.param, hidden)
        problem = _probe(found, place / "probe2", busybox)
        if not problem:
            return found
    problem = f"{request.param} cannot start anything on this machine: {problem}"
    if request.param == "runc" and ROOT:
        missing(problem)
    pytest.skip(problem)


def _probe(engine: Engine, folder: Path, busybox: Path) -> str:
    """Why the runtime cannot run the plainest bundle there is; "" if it can."""
    make_root(folder / "rootfs", busybox)
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    }
    if not ROOT:
        spec["linux"] = {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}],
        }
    (folder / "config.json").write_text(json.dumps(spec))
    done = engine.run(ContainerBundle(folder))
    return done.stderr.strip()[-200:] if done.returncode else ""
