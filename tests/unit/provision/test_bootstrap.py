from __future__ import annotations

import os

import pytest

from pytest_sandbox.errors import Blame, ImageUnavailable
from pytest_sandbox.provision import bootstrap
from pytest_sandbox.provision.bootstrap import bootstrap_debian, emulation_problem
from pytest_sandbox.targets import host_arch

MIRROR = "http://mirror.corp/debian"


@pytest.fixture
def fake_tool(tmp_path, monkeypatch):
    """A real program in mmdebstrap's place, that does what the test writes."""

    def write(script, name="mmdebstrap"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return write


def run(tmp_path, said=None, **more):
    return bootstrap_debian(
        "trixie", host_arch(), MIRROR, destination=tmp_path / "out" / "base.tar",
        say=(said if said is not None else []).append, **more,
    )  # fmt: skip


def leftovers(tmp_path):
    return [p.name for p in tmp_path.iterdir() if p.name.startswith("pytest-sandbox-bootstrap")]


def test_the_tar_is_hashed_and_progress_is_said(tmp_path, fake_tool):
    fake_tool(
        'echo "I: running apt-get update..." >&2; eval out=\\${$(($#-1))}; printf abc > "$out"'
    )
    said = []
    made = run(tmp_path, said)
    assert made.path.read_bytes() == b"abc"
    assert made.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (made.size, made.suite, made.arch) == (3, "trixie", host_arch())
    assert said == [
        f"bootstrapping trixie for {host_arch()} from {MIRROR} with mmdebstrap",
        "running apt-get update",
    ]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "blame", "step"),
    [
        ("E: Failed to fetch http://m/x  Could not resolve 'm'", Blame.NETWORK, "try again"),
        ("E: Failed to fetch http://m/x  Could not connect to m:80", Blame.NETWORK, "proxy"),
        ("E: Failed to fetch http://m/x  503  Service Unavailable", Blame.NETWORK, "try again"),
        (
            "E: The repository 'http://m x Release' does not have a Release file.",
            Blame.UPSTREAM,
            "--mirror",
        ),
        (
            "W: GPG error: http://m trixie InRelease: NO_PUBKEY 6ED0",
            Blame.HOST,
            "debian-archive-keyring",
        ),
        (
            "E: Certificate verification failed: The certificate is NOT trusted.",
            Blame.HOST,
            "CA certificate",
        ),
        ("E: write error: No space left on device", Blame.HOST, "disk space"),
    ],
)
def test_failures_are_blamed(tmp_path, fake_tool, line, blame, step):
    fake_tool(f"cat >&2 <<'X'\n{line}\nE: mmdebstrap failed to run\nX\nexit 25")
    with pytest.raises(ImageUnavailable) as caught:
        run(tmp_path)
    assert caught.value.blame is blame
    assert step in caught.value.next_step
    assert line.split("  ")[0] in caught.value.details
    assert not (tmp_path / "out" / "base.tar").exists()
    assert leftovers(tmp_path) == []


def test_a_hanging_tool_is_ended(tmp_path, fake_tool):
    fake_tool("echo 'I: started' >&2; sleep 1000 & wait")
    with pytest.raises(ImageUnavailable, match="took too long") as caught:
        run(tmp_path, timeout=0.5)
    assert caught.value.blame is Blame.TIMEOUT


def test_only_what_a_bootstrap_needs_of_the_environment_is_passed(tmp_path, fake_tool):
    fake_tool(f'env > {tmp_path}/seen; eval out=\\${{$(($#-1))}}; : > "$out"')
    environ = {**os.environ, "AWS_SECRET_ACCESS_KEY": "x", "HTTPS_PROXY": "http://p:1"}
    run(tmp_path, environ=environ)
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["https_proxy"] == seen["HTTPS_PROXY"] == "http://p:1"
    assert seen["SOURCE_DATE_EPOCH"] == str(bootstrap.EPOCH)
    assert "AWS_SECRET_ACCESS_KEY" not in seen


def test_a_missing_tool_is_the_hosts(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, "which", lambda *_a, **_k: None)
    with pytest.raises(ImageUnavailable, match="apt-get install mmdebstrap") as caught:
        run(tmp_path)
    assert caught.value.blame is Blame.HOST


def test_emulation_is_checked_with_the_way_to_it(tmp_path, fake_tool):
    fake_tool("", name="arch-test")
    other = "arm64" if host_arch() == "amd64" else "amd64"
    assert emulation_problem(host_arch(), tmp_path) is None
    problem = emulation_problem(other, tmp_path)
    assert problem is not None
    assert f"mount -t binfmt_misc binfmt_misc {tmp_path}" in problem[1]
    assert "update-binfmts --enable qemu-" in problem[1]
    (tmp_path / "register").touch()
    (tmp_path / bootstrap._QEMU[other]).write_text("disabled\n")
    problem = emulation_problem(other, tmp_path)
    assert problem is not None
    assert "mount" not in problem[1]
    (tmp_path / bootstrap._QEMU[other]).write_text("enabled\ninterpreter /usr/bin/q\n")
    assert emulation_problem(other, tmp_path) is None
