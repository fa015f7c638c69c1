"""The list of attacks, from inside a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.runtimes.base import Mount
from pytest_sandbox.runtimes.oci.launchers.attacks import ATTACKS
from tests.attacks.conftest import OURS
from tests.attacks.interpreter import COMMAND

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.base import System
    from pytest_sandbox.runtimes.oci.launchers.attacks import Outside

THEIRS = {
    # What an engine of others allows, by its version and settings; see docs/security.md.
    "ids": "no user namespace",
    "namespaces": "no user namespace; on cgroup v1 no cgroup namespace",
    "cgroup-view": "on cgroup v1 no cgroup namespace",
    "mknod": "its rules for devices allow tun",
    "masked": "root is the machine's, and /proc has more for it than is masked",
    "io-uring": "older filters allow it",
    "socket-families": "older filters allow them",
    "i386-socketcall": "the filter cannot see its arguments",
    "i386": "older filters allow io_uring and AF_VSOCK",
    "i386-clone": "Podman allows new user namespaces",
    "unshare": "Podman allows new user namespaces",
    "setns": "Podman allows it where the kernel does",
    "keys": "Podman gives a keyring of its own, and allows keyctl",
}


def words(outside: Outside) -> list[str]:
    """The arguments of the program that runs the list."""
    marks = " ".join(mark.hex() for mark in outside.marks)
    return [marks, " ".join(map(str, outside.ports)), " ".join(outside.sockets)]


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_every_attack_is_refused(
    launcher: str, start: Callable[..., System], outside: Outside, user: str
):
    system = start(pids=64)
    result = system.run([*COMMAND, *words(outside)], user=user, timeout=60)
    assert result.ok, result.stderr
    found = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert found.keys() <= {attack.name for attack in ATTACKS}
    allowed = frozenset() if launcher in OURS else frozenset(THEIRS)
    assert {name: text for name, text in found.items() if name not in allowed} == {}
    assert system.run(["echo", "usable"]).stdout == "usable\n"


@pytest.mark.parametrize("launcher", sorted(OURS), indirect=True, scope="session")
def test_a_mounted_folder_is_no_way_out(
    start: Callable[..., System], outside: Outside, tmp_path: Path
):
    (tmp_path / "file").write_text("kept")
    tmp_path.chmod(0o755)
    system = start(pids=64, mounts=(Mount(tmp_path, "/mnt/in"),))
    assert system.run(["cat", "/mnt/in/file"]).stdout == "kept"
    assert not system.run(["sh", "-c", "echo more >>/mnt/in/file || touch /mnt/in/new"]).ok
    result = system.run([*COMMAND, *words(outside)], timeout=60)
    assert (result.ok, result.stdout) == (True, ""), result.stderr
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "kept")]
