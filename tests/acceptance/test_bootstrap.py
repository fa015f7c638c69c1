"""A Debian base from the host's own mirror, for real."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import time

import pytest

from pytest_sandbox.errors import Blame, ImageUnavailable
from pytest_sandbox.images.families import load_families
from pytest_sandbox.limits import Limits
from pytest_sandbox.provision import bootstrap
from pytest_sandbox.provision.bases import BASE_SHA_LABEL, find_base, without_digest
from pytest_sandbox.provision.bootstrap import bootstrap_debian, bootstrap_tool, emulation_problem
from pytest_sandbox.provision.mirrors import mirror_sources
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.bases import ensure_base
from pytest_sandbox.runtimes.detect import find_runtime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch, host_family
from tests.acceptance.leftovers import on

ARCH = host_arch()
DEBIAN = Target("linux", ARCH, "debian")
REFERENCE = load_families()["debian"].image

pytestmark = pytest.mark.skipif(
    host_family() != "debian" or bootstrap_tool() is None,
    reason="needs a host of the debian family with mmdebstrap or debootstrap",
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A bootstrap of this minute."""
    folder = tmp_path_factory.mktemp("bootstrap")
    said = []
    made = bootstrap_debian("trixie", ARCH, destination=folder / "base.tar", say=said.append)
    return made, said


def test_the_base_is_small_and_has_nothing_to_spare(fresh):
    made, said = fresh
    assert made.size == made.path.stat().st_size < 110e6
    assert said[0].startswith(f"bootstrapping trixie for {ARCH} from ")
    with tarfile.open(made.path) as tar:
        names = {member.name.removeprefix("./").rstrip("/"): member for member in tar}
        release = tar.extractfile(names["usr/lib/os-release"]).read().decode()
        sources = tar.extractfile(names["etc/apt/sources.list"]).read().decode()
    assert "VERSION_CODENAME=trixie" in release
    assert sources.split()[2] == "trixie"
    assert {"usr/bin/apt-get", "etc/ssl/certs/ca-certificates.crt"} <= names.keys()
    spare = ("var/lib/apt/lists/", "var/cache/apt/", "usr/share/man/", "var/log/")
    assert [n for n, m in names.items() if n.startswith(spare) and m.isfile() and m.size] == []
    docs = [n for n, m in names.items() if n.startswith("usr/share/doc/") and m.isfile()]
    assert {name.rpartition("/")[2] for name in docs} <= {"copyright"}
    assert max(member.mtime for member in names.values()) <= 1735689600


def test_the_same_packages_give_the_same_bytes(fresh, tmp_path):
    made, _said = fresh
    recorded = find_base(REFERENCE, ARCH)
    if recorded and recorded.suite == "trixie" and time.time() - recorded.created < 1800:
        assert recorded.sha256 == made.sha256
        return
    again = bootstrap_debian("trixie", ARCH, destination=tmp_path / "t.tar", say=lambda _line: None)
    assert again.sha256 == made.sha256


def test_the_base_stands_under_the_name_of_families_toml(engine):
    info = ensure_base(engine, REFERENCE, DEBIAN)
    assert info.arch == ARCH
    recorded = find_base(REFERENCE, ARCH)
    if recorded is None:
        assert info.name == REFERENCE  # the engine reaches a registry
        return
    assert info.name == without_digest(REFERENCE)
    assert info.labels[BASE_SHA_LABEL] == recorded.sha256
    system = engine.start(SandboxSpec(info.name, DEBIAN, Limits()), current_owner("test-bootstrap"))
    try:
        result = system.run(
            ["sh", "-c", "dpkg-query -W | wc -l; command -v python3 man; apt-get -v"]
        )
    finally:
        system.close()
    assert int(result.stdout.split()[0]) < 110
    assert "python3" not in result.stdout
    assert "apt " in result.stdout


@on["oci"]
def test_the_command_line_makes_another_suite_under_the_name_it_is_given(
    engine, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    engine = find_runtime(engine.name, os.environ)  # its store is in that folder, if it has one
    name = f"pytest-sandbox.invalid/test-{secrets.token_hex(4)}/debian:base"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest_sandbox.cli", "image", "bootstrap", "debian",
             "--suite", "bookworm", "--base", f"debian={name}@sha256:{'b' * 64}"],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{name}: bookworm for {ARCH}, ")
        assert " MB, sha256 " in done.stdout
        assert "running apt-get update" in done.stderr
        info = engine.find_image(name)
        assert info is not None
        assert find_base(name, ARCH).sha256 == info.labels[BASE_SHA_LABEL]
        # The engine loses it: the very same comes back from the kept tar, without the network.
        engine.remove_image(name)
        again = ensure_base(engine, name, DEBIAN, offline=True)
        assert again.labels == info.labels
    finally:
        engine.remove_image(name)
        engine.close()


def test_another_architecture_says_how_it_could_run(tmp_path):
    other = "arm64" if ARCH == "amd64" else "amd64"
    if emulation_problem(other) is None:
        made = bootstrap_debian("trixie", other, destination=tmp_path / "t.tar", say=print)
        assert made.arch == other
        return
    with pytest.raises(ImageUnavailable, match=f"cannot run {other} programs") as caught:
        bootstrap_debian("trixie", other, destination=tmp_path / "t.tar", say=print)
    assert "update-binfmts --enable qemu-" in caught.value.next_step


def test_a_mirror_that_refuses_is_the_networks_fault(tmp_path):
    with pytest.raises(ImageUnavailable) as caught:
        bootstrap_debian(
            "trixie", ARCH, "http://127.0.0.1:9/debian", destination=tmp_path / "t.tar", say=print
        )
    assert caught.value.blame is Blame.NETWORK
    assert not (tmp_path / "t.tar").exists()


def test_an_unknown_suite_is_upstreams_fault(tmp_path):
    mirror = mirror_sources("trixie")[0].uri
    with pytest.raises(ImageUnavailable, match="no-such-suite") as caught:
        bootstrap_debian("no-such-suite", ARCH, mirror, destination=tmp_path / "t.tar", say=print)
    assert caught.value.blame is Blame.UPSTREAM
    assert "--mirror" in caught.value.next_step


@pytest.mark.skipif(
    shutil.which("debootstrap", path="/usr/sbin:/usr/bin") is None or os.geteuid() != 0,
    reason="needs debootstrap and root",
)
def test_debootstrap_does_it_too(tmp_path, monkeypatch):
    tool = shutil.which("debootstrap", path="/usr/sbin:/usr/bin")
    monkeypatch.setattr(bootstrap, "bootstrap_tool", lambda: tool)
    made = bootstrap_debian("trixie", ARCH, destination=tmp_path / "t.tar", say=lambda _line: None)
    with tarfile.open(made.path) as tar:
        names = {member.name.removeprefix("./"): member for member in tar}
    assert {"usr/bin/apt-get", "etc/ssl/certs/ca-certificates.crt"} <= names.keys()
    assert "debootstrap" not in names
    assert max(member.mtime for member in names.values()) <= bootstrap.EPOCH
