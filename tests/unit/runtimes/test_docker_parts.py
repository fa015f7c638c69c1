"""Pure parts of the Docker runtime: changes, modes, references, blame, the held program."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import Blame
from pytest_sandbox.runtimes.base import Changes
from pytest_sandbox.runtimes.build_blame import blame_of
from pytest_sandbox.runtimes.docker_build import _note, _Progress, context
from pytest_sandbox.runtimes.docker_files import select_changes, unix_mode
from pytest_sandbox.runtimes.docker_images import _pull_error, posix_time, split_reference
from pytest_sandbox.runtimes.hold import program
from pytest_sandbox.targets import host_arch

if TYPE_CHECKING:
    from pathlib import Path


def test_engine_files_and_mounts_are_no_changes():
    listed = {
        "/dev": 0,
        "/dev/.sandbox": 1,
        "/etc": 0,
        "/etc/hosts": 1,
        "/sbin": 0,
        "/sbin/docker-init": 1,
        "/box": 1,
        "/box/in": 1,
        "/run": 0,
        "/run/secrets": 1,
    }
    assert select_changes(listed, ["/box/in"]) == Changes()


def test_folders_are_listed_for_themselves_only():
    listed = {"/etc": 0, "/etc/a": 0, "/srv": 0, "/opt": 0, "/opt/new": 1, "/opt/new/f": 1, "/x": 2}
    assert select_changes(listed, []) == Changes(
        added=("/opt/new", "/opt/new/f"), changed=("/etc/a", "/srv"), removed=("/x",)
    )


def test_what_is_beside_a_mount_is_a_change():
    listed = {"/box": 1, "/box/in": 1, "/box/out": 1}
    assert select_changes(listed, ["/box/in"]).added == ("/box", "/box/out")


def test_a_similar_name_is_no_mount():
    assert select_changes({"/box": 0, "/box/input": 1}, ["/box/in"]).added == ("/box/input",)


@pytest.mark.parametrize(
    ("go", "unix"),
    [
        (0o644, stat.S_IFREG | 0o644),
        (1 << 31 | 0o755, stat.S_IFDIR | 0o755),
        (1 << 31 | 1 << 20 | 0o777, stat.S_IFDIR | 0o1777),
        (1 << 27 | 0o777, stat.S_IFLNK | 0o777),
        (1 << 23 | 0o755, stat.S_IFREG | 0o4755),
        (1 << 22 | 0o755, stat.S_IFREG | 0o2755),
        (1 << 25 | 0o600, stat.S_IFIFO | 0o600),
        (1 << 26 | 0o600, stat.S_IFBLK | 0o600),
        (1 << 26 | 1 << 21 | 0o600, stat.S_IFCHR | 0o600),
        (1 << 24 | 0o600, stat.S_IFSOCK | 0o600),
    ],
)
def test_modes(go: int, unix: int):
    assert unix_mode(go) == unix


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("debian", ("debian", "latest")),
        ("debian:trixie", ("debian", "trixie")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
        ("localhost:5000/a/b:1", ("localhost:5000/a/b", "1")),
        ("a/b@sha256:00", ("a/b", "sha256:00")),
    ],
)
def test_references(reference: str, parts: tuple[str, str]):
    assert split_reference(reference) == parts


def test_times():
    assert posix_time("1970-01-02T00:00:01.123456789Z") == 86401.0
    assert posix_time("nonsense") == 0.0


@pytest.mark.parametrize(
    ("text", "blame"),
    [
        ("manifest for x:1 not found: manifest unknown", Blame.UPSTREAM),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            Blame.HOST,
        ),
        ("Get https://r/v2/: dial tcp: lookup r: no such host", Blame.NETWORK),
        ("Get https://r/v2/: x509: certificate signed by unknown authority", Blame.HOST),
        ("toomanyrequests: You have reached your pull rate limit", Blame.NETWORK),
        ("no matching manifest for linux/arm64 in the manifest list entries", Blame.UPSTREAM),
    ],
)
def test_blame_of_a_pull(text: str, blame: Blame):
    error = _pull_error("x:1", text)
    assert error.blame is blame
    assert error.next_step


@pytest.mark.parametrize(
    ("text", "blame"),
    [
        ("E: Unable to locate package nosuch", Blame.RECIPE),
        ("No package nosuch available.", Blame.RECIPE),
        ("error: target not found: nosuch", Blame.RECIPE),
        ("Err:1 Temporary failure resolving 'm'\nE: Unable to locate package jq", Blame.NETWORK),
        (
            "Could not connect to m:80 (127.0.0.1). - connect (111: Connection refused)",
            Blame.NETWORK,
        ),
        ("curl: (22) The requested URL returned error: 503", Blame.NETWORK),
        ("E: Failed to fetch http://m/x.deb  404  Not Found", Blame.UPSTREAM),
        ("curl: (60) SSL certificate problem: unable to get local issuer certificate", Blame.HOST),
        ("make: *** [all] Error 1", Blame.RECIPE),
    ],
)
def test_blame_of_a_build(text: str, blame: Blame):
    assert blame_of(text, 100)[0] is blame


def test_a_killed_build_step_ran_out_of_memory():
    assert blame_of("", 137)[0] is Blame.LIMIT


def test_progress_of_a_build():
    said: list[str] = []
    progress = _Progress()
    for event in (
        {"stream": "Step 1/2 : FROM debian"},
        {"stream": " ---> 0123456789ab\n"},
        {"stream": "Step 2/2 : RUN \x1b[91mx\n"},
        {"stream": " ---> Running in ba9876543210\n"},
        {"stream": "\x1b[91mE: \x1b[0m"},
        {"stream": "said meanwhile\n"},
        {"stream": "\x1b[91mbad\n\x1b[0m"},
        {"errorDetail": {"code": 7, "message": "m"}, "error": "returned a non-zero code: 7"},
    ):
        _note(progress, event, said.append)
    assert said[0] == "step 1/2: FROM debian"
    assert progress.containers == ["ba9876543210"]
    assert progress.layers == ["0123456789ab"]
    assert list(progress.step_lines) == ["said meanwhile", "E: bad"]
    assert progress.code == 7


def test_a_context_holds_exactly_the_files():
    data = context({"b/c": b"2", "Dockerfile": b"FROM x"})
    assert data == context({"Dockerfile": b"FROM x", "b/c": b"2"})
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        assert tar.getnames() == ["Dockerfile", "b/c"]


def test_the_held_program_waits_for_the_end_of_its_input(tmp_path: Path):
    path = tmp_path / "hold"
    path.write_bytes(program(host_arch()))
    path.chmod(0o755)
    if not os.access(path, os.X_OK):
        pytest.skip("nothing can be executed here")
    with subprocess.Popen([path], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"x" * 1000)
        child.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        child.stdin.close()
        assert child.wait(5) == 0
