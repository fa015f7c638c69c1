"""Systems other than a plain Linux: macOS with Lima or Colima, Windows, and WSL2."""

from __future__ import annotations

import http.server
import json
import platform
import re
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci.spec.seccomp import kernel_version, seccomp
from pytest_sandbox.runtimes import docker_context
from pytest_sandbox.runtimes.detect import choose_runtime, podman_endpoint, survey
from pytest_sandbox.runtimes.docker_context import Endpoint, default_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[3]
WSL = "5.15.167.4-microsoft-standard-WSL2"
ANSWERS: dict[str, Any] = {
    "version": {
        "Version": "27.0.0",
        "ApiVersion": "1.41",
        "MinAPIVersion": "1.24",
        "Components": [{"Name": "Engine"}],
    },
    "info": {"Architecture": "aarch64", "Driver": "overlay2", "CgroupVersion": "2", "NCPU": 4},
    "_ping": "OK",
}


class Engine(http.server.BaseHTTPRequestHandler):
    """Says of itself what Docker says, and nothing else."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = re.sub(r"^/(v[0-9.]+/)?", "", self.path)
        body = json.dumps(ANSWERS[name]).encode() if name in ANSWERS else b"{}"
        self.send_response(200 if name in ANSWERS else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def home() -> Iterator[Path]:
    """A short HOME: the path of a socket has less than 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="psb-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lima(home: Path) -> Iterator[Path]:
    """The socket of an engine that answers in a virtual machine of Lima."""
    path = home / ".lima" / "docker" / "sock" / "docker.sock"
    path.parent.mkdir(parents=True)
    with Server(str(path), Engine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


@pytest.fixture
def only_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines of the machine that runs the tests do not count."""

    def below(environ: Mapping[str, str]) -> list[Endpoint]:
        return [end for end in default_sockets(environ) if str(home) in end.url]

    monkeypatch.setattr(docker_context, "default_sockets", below)


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return f"unix://{path}"


def test_sockets_of_lima_and_colima_are_found(tmp_path: Path) -> None:
    own = {
        touch(tmp_path / ".lima/default/sock/docker.sock"): "Lima default",
        touch(tmp_path / ".lima/my box/sock/podman.sock"): "Lima my box",
        touch(tmp_path / ".colima/default/docker.sock"): "Colima",
        touch(tmp_path / ".colima/other/docker.sock"): "Colima other",
    }
    touch(tmp_path / ".lima/default/sock/containerd.sock")
    touch(tmp_path / ".lima/_config/docker.sock")
    found = default_sockets({"HOME": str(tmp_path)})
    sources = {end.url: end.source for end in found}
    assert len(sources) == len(found)
    assert own.items() <= sources.items()
    assert [end.source for end in found if "Lima" in end.source] == ["Lima default", "Lima my box"]
    assert not any(end.named for end in found)
    assert found[0].url == "unix:///var/run/docker.sock"
    assert podman_endpoint({"HOME": str(tmp_path)}).endswith("/my box/sock/podman.sock")


def test_lima_may_have_another_home(tmp_path: Path) -> None:
    touch(tmp_path / ".lima/default/sock/docker.sock")
    other = touch(tmp_path / "elsewhere/one/sock/docker.sock")
    for environ in ({"HOME": str(tmp_path)}, {}):
        found = default_sockets({**environ, "LIMA_HOME": str(tmp_path / "elsewhere")})
        assert [end.url for end in found if "Lima" in end.source] == [other]


@pytest.mark.parametrize(
    ("system", "step"),
    [
        ("darwin", "in a Linux machine of Lima"),
        ("win32", "in WSL2"),
        ("freebsd14", "on a Linux machine"),
    ],
)
def test_the_next_step_names_a_way_to_linux(
    home: Path, monkeypatch: pytest.MonkeyPatch, system: str, step: str
) -> None:
    environ = {"HOME": str(home), "PYTEST_SANDBOX_DATA": str(home / "data")}
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(RuntimeUnavailable, match="need Linux") as wrong:
        choose_runtime("oci", environ)
    monkeypatch.undo()
    assert step in wrong.value.next_step
    assert "or use Docker or Podman" in wrong.value.next_step
    assert wrong.value.blame == "host"


@pytest.mark.usefixtures("only_home")
def test_auto_without_any_engine_names_both(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"HOME": str(home), "PYTEST_SANDBOX_DATA": str(home / "data")}
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeUnavailable, match=r"no container engine .*need Linux") as wrong:
        choose_runtime("auto", environ)
    monkeypatch.undo()
    assert "Lima" in wrong.value.next_step


_ON_A_MAC = """
import json, os, platform, select, signal, sys, urllib.request
import docker, requests
for module, names in (
    (os, "O_PATH sched_getaffinity memfd_create MFD_CLOEXEC pidfd_open P_PIDFD setns unshare "
         "splice copy_file_range CLONE_NEWUSER posix_fallocate eventfd"),
    (select, "epoll EPOLLIN"),
    (signal, "pidfd_send_signal"),
):
    for name in names.split():
        vars(module).pop(name, None)
sys.platform = "darwin"
from pytest_sandbox.runtimes import docker_context
real = docker_context.default_sockets
docker_context.default_sockets = lambda environ: [
    end for end in real(environ) if environ["HOME"] in end.url
]
from pytest_sandbox.runtimes.detect import choose_runtime, survey
choice = choose_runtime("auto", os.environ)
info = choice.runtime.info()
choice.runtime.close()
found = [[one.runtime, one.source, one.found, one.next_step] for one in survey(os.environ)]
print(json.dumps([info.name, info.version, info.arches[0], info.endpoint, choice.why, found]))
"""


def test_auto_takes_docker_where_oci_cannot_run(home: Path, lima: Path) -> None:
    """Nothing that macOS lacks is looked up before the system is."""
    environ = {"HOME": str(home), "PYTEST_SANDBOX_DATA": str(home / "data")}
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_MAC],
        env={**environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    *info, endpoint, why, found = json.loads(done.stdout)
    assert info == ["docker", "27.0.0", "arm64"]
    assert endpoint == f"unix://{lima}"
    assert "need Linux (this is darwin)" in why
    name, _, usable, step = found[0]
    assert (name, usable) == ("oci", False)
    assert "Lima" in step
    assert [(one[0], one[1]) for one in found if one[2]] == [("docker", "Lima docker")]


def test_the_kernel_of_wsl2() -> None:
    assert kernel_version(WSL) == (5, 15)
    assert seccomp("amd64", WSL, ()) == seccomp("amd64", "5.15.0", ())


def test_wsl2_is_linux(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel's name changes nothing: what counts is what can be done there."""
    monkeypatch.setattr(platform, "release", lambda: WSL)
    environ = {"HOME": str(home), "PYTEST_SANDBOX_DATA": str(home / "data")}
    (own, *_) = survey(environ)
    assert "need Linux" not in own.problem
