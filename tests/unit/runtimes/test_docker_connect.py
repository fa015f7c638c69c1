"""Where an engine is looked for, and what is said when it is not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import RuntimeUnavailable, UsageError
from pytest_sandbox.runtimes import docker_connect
from pytest_sandbox.runtimes.detect import find_runtime, survey
from pytest_sandbox.runtimes.docker_context import Endpoint, candidates

if TYPE_CHECKING:
    from pathlib import Path


def context(home: Path, name: str, host: str, *, current: bool = True) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    folder = home / ".docker" / "contexts" / "meta" / digest
    folder.mkdir(parents=True)
    meta = {"Name": name, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": True}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    if current:
        (home / ".docker" / "config.json").write_text(json.dumps({"currentContext": name}))


def test_order_of_precedence(tmp_path: Path):
    context(tmp_path, "mine", "unix:///from/context")
    environ = {"HOME": str(tmp_path), "DOCKER_HOST": "unix:///from/environ"}
    assert [e.url for e in candidates(environ, "unix:///explicit")] == ["unix:///explicit"]
    assert [e.url for e in candidates(environ)] == ["unix:///from/environ"]
    del environ["DOCKER_HOST"]
    assert [e.url for e in candidates(environ)] == ["unix:///from/context"]
    environ["DOCKER_CONTEXT"] = "default"
    assert candidates(environ)[0].url == "unix:///var/run/docker.sock"


def test_a_context_that_is_not_there(tmp_path: Path):
    with pytest.raises(RuntimeUnavailable, match="'gone'") as caught:
        candidates({"HOME": str(tmp_path), "DOCKER_CONTEXT": "gone"})
    assert "docker context ls" in caught.value.next_step


def test_default_sockets(tmp_path: Path):
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/7"}
    urls = [end.url for end in candidates(environ)]
    assert urls[0] == "unix:///var/run/docker.sock"
    assert "unix:///run/user/7/docker.sock" in urls
    assert "unix:///run/user/7/podman/podman.sock" in urls
    assert urls[-1] == "unix:///run/podman/podman.sock"


def test_tls_of_tcp(tmp_path: Path):
    environ = {"HOME": str(tmp_path), "DOCKER_HOST": "tcp://h:2376", "DOCKER_TLS_VERIFY": "1"}
    assert candidates(environ)[0] == Endpoint(
        "tcp://h:2376", "DOCKER_HOST", str(tmp_path / ".docker"), True
    )
    environ["DOCKER_CERT_PATH"] = "/certs"
    assert candidates(environ)[0].tls_folder == "/certs"
    assert candidates({"HOME": "/", "DOCKER_HOST": "tcp://h:1"})[0].tls_folder == ""


def test_no_socket(tmp_path: Path):
    with pytest.raises(RuntimeUnavailable, match="no socket at") as caught:
        docker_connect.connect(Endpoint(f"unix://{tmp_path}/none.sock", "DOCKER_HOST"))
    assert "DOCKER_HOST" in str(caught.value)
    assert caught.value.next_step


def test_a_dead_socket(tmp_path: Path):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with pytest.raises(RuntimeUnavailable, match="not running"):
        docker_connect.connect(Endpoint(f"unix://{path}", "x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to everything")
def test_permission_denied(tmp_path: Path):
    path = tmp_path / "closed.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0)
        with pytest.raises(RuntimeUnavailable, match="permission denied"):
            docker_connect.connect(Endpoint(f"unix://{path}", "x"))


def test_permission_denied_is_told_from_the_kernels_word(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: socket.socket, address: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(RuntimeUnavailable, match="permission denied") as caught:
        docker_connect.connect(Endpoint("unix:///var/run/docker.sock", "Docker"))
    assert "group" in caught.value.next_step


def test_an_engine_that_does_not_answer(tmp_path: Path):
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(RuntimeUnavailable, match=r"does not answer within 0\.3 s"):
            docker_connect.connect(Endpoint(f"unix://{path}", "x"), timeout=0.3)


def test_something_else_that_answers(tmp_path: Path):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()

        def serve() -> None:
            for _ in range(2):
                peer, _address = sock.accept()
                with peer, contextlib.suppress(OSError):
                    peer.recv(4096)
                    peer.sendall(b"220 this is mail\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RuntimeUnavailable, match="no usable answer"):
            docker_connect.connect(Endpoint(f"unix://{path}", "x"), timeout=2)
        thread.join()


def test_nothing_found_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nowhere = [Endpoint(f"unix://{tmp_path}/{n}", "x", named=False) for n in ("a", "b")]
    monkeypatch.setattr(docker_connect, "candidates", lambda *_args: nowhere)
    with pytest.raises(RuntimeUnavailable, match="no container engine found") as caught:
        docker_connect.connect_any({})
    assert "install and start Docker or Podman" in caught.value.next_step


def test_unknown_runtime():
    with pytest.raises(UsageError, match="'doker'"):
        find_runtime("doker", {})


def test_the_fake_runtime_by_name():
    assert find_runtime("fake", {}).info().name == "fake"


def test_survey_names_what_is_missing(tmp_path: Path):
    environ = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "HOME": str(tmp_path)}
    own, *found = survey(environ)
    assert own.runtime == "oci"
    assert found[0].endpoint == environ["DOCKER_HOST"]
    assert not found[0].found
    assert "no socket" in found[0].problem
    assert found[0].next_step
    assert len(found) > 3


@pytest.mark.parametrize("content", ["[1]", '"text"'])
def test_a_configuration_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
):
    (tmp_path / "config.json").write_text(content)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    path = f"{tmp_path}/engine.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(path)
        engine.listen()
        with pytest.raises(RuntimeUnavailable, match=r"config\.json") as caught:
            docker_connect.connect(Endpoint(f"unix://{path}", "the test"), timeout=0.5)
    assert "DOCKER_CONFIG" in caught.value.next_step
