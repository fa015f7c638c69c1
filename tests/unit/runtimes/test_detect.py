"""Which engine a run uses, by what Docker's own configuration says; why none can be used."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import RuntimeUnavailable, UsageError
from pytest_sandbox.runtimes.detect import find_runtime
from pytest_sandbox.runtimes.docker_context import candidates


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A DOCKER_CONFIG with the contexts `one` (unix) and `two` (tcp with TLS); `one` is current."""
    for name, endpoint in (
        ("one", {"Host": "unix:///one.sock"}),
        ("two", {"Host": "tcp://two:2376", "SkipTLSVerify": True}),
    ):
        digest = hashlib.sha256(name.encode()).hexdigest()
        meta = tmp_path / "contexts" / "meta" / digest
        meta.mkdir(parents=True)
        (meta / "meta.json").write_text(
            json.dumps({"Name": name, "Endpoints": {"docker": endpoint}})
        )
    tls = tmp_path / "contexts" / "tls" / hashlib.sha256(b"two").hexdigest() / "docker"
    tls.mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "one"}))
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "url", "source"),
    [
        ({}, "unix:///one.sock", "context one"),
        ({"DOCKER_CONTEXT": "two"}, "tcp://two:2376", "context two"),
        (
            {"DOCKER_CONTEXT": "two", "DOCKER_HOST": "unix:///host.sock"},
            "unix:///host.sock",
            "DOCKER_HOST",
        ),
        ({"DOCKER_HOST": ""}, "unix:///one.sock", "context one"),
    ],
)
def test_host_beats_context_beats_the_current_one(
    config: Path, environ: dict[str, str], url: str, source: str
) -> None:
    (found,) = candidates({"DOCKER_CONFIG": str(config), "HOME": "/nowhere", **environ})
    assert (found.url, found.source, found.named) == (url, source, True)


def test_tls_of_a_context(config: Path) -> None:
    (found,) = candidates({"DOCKER_CONFIG": str(config), "DOCKER_CONTEXT": "two"})
    assert Path(found.tls_folder).is_relative_to(config / "contexts" / "tls")
    assert not found.tls_verify


@pytest.mark.parametrize("damage", ["missing", "no JSON", "no endpoint"])
def test_a_context_that_cannot_be_read_is_named(config: Path, damage: str) -> None:
    meta = config / "contexts" / "meta" / hashlib.sha256(b"one").hexdigest() / "meta.json"
    if damage == "missing":
        meta.unlink()
    else:
        meta.write_text("{" if damage == "no JSON" else '{"Endpoints": {}}')
    with pytest.raises(RuntimeUnavailable, match="Docker context 'one' cannot be read") as wrong:
        find_runtime("docker", {"DOCKER_CONFIG": str(config)})
    assert wrong.value.blame == "host"
    assert "docker context ls" in wrong.value.next_step


@pytest.mark.parametrize("text", ["", "[]", "not json", '{"currentContext": null}'])
def test_without_a_current_context_the_usual_sockets_count(config: Path, text: str) -> None:
    (config / "config.json").write_text(text)
    found = candidates({"DOCKER_CONFIG": str(config), "HOME": "/nowhere"})
    assert found[0].url == "unix:///var/run/docker.sock"
    assert not any(one.named for one in found)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"unknown runtime 'dokcer'; next: use one of auto, oci"):
        find_runtime("dokcer", {})


def why_not(path: Path) -> RuntimeUnavailable:
    with pytest.raises(RuntimeUnavailable) as wrong:
        find_runtime("docker", {"DOCKER_HOST": f"unix://{path}"})
    assert wrong.value.blame == "host"
    assert wrong.value.next_step
    return wrong.value


def test_no_socket(tmp_path: Path) -> None:
    assert f"no socket at unix://{tmp_path}/none" in why_not(tmp_path / "none").what


def test_a_file_that_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    assert "nobody listens at" in why_not(path).what


def test_an_engine_that_accepts_and_never_answers_is_told_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        began = time.monotonic()
        assert "does not answer within 5 s" in why_not(path).what
        assert time.monotonic() - began < 12


AS_NOBODY = """\
import os, sys
from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.runtimes import docker, docker_connect  # nobody may be unable to read these
from pytest_sandbox.runtimes.detect import find_runtime
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    find_runtime("docker", {"DOCKER_HOST": sys.argv[1]})
except RuntimeUnavailable as wrong:
    print(wrong)
"""


def test_permission_denied() -> None:
    # Not below tmp_path, whose folders only their owner may enter: the socket itself refuses.
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = folder / "s"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()
            path.chmod(0)
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, f"unix://{path}"],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
    finally:
        shutil.rmtree(folder)
    assert done.stdout.startswith(
        f"image: host: permission denied on unix://{path} (DOCKER_HOST); next: join the group"
    )
