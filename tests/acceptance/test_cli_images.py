"""`pytest-sandbox image`, `doctor` and `shell`, as a user calls them."""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pytest

from pytest_sandbox.images.families import load_families
from pytest_sandbox.limits import Limits
from pytest_sandbox.provision.bases import cache_dir
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.bases import ensure_base
from pytest_sandbox.runtimes.kept import KEPT, keep
from pytest_sandbox.runtimes.last_use import cached_images
from pytest_sandbox.runtimes.oci.containers.folder import Containers
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch
from tests.acceptance.leftovers import on

DEBIAN = Target("linux", host_arch(), "debian")
TOOL = (sys.executable, "-m", "pytest_sandbox.cli")

RECIPE = """\
[metadata]
name = "a-group"

[[steps]]
action = "group_add"
group = "sandboxers"

[verify]
command = "getent group sandboxers"
pattern = "sandboxers"
"""


def tool(*args, cwd=None, env=None, stdin=None):
    return subprocess.run(
        [*TOOL, *args],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path, engine):
    """A project with one recipe and a repository of its own for images."""
    prefix = f"tsuku/sandbox-test-{secrets.token_hex(4)}"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nsandbox_image_prefix = {prefix}\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    yield tmp_path
    for info in cached_images(engine, prefix):
        engine.remove_image(info.name)


def last_use_of(engine, name):
    """The file whose time is when an image was last used."""
    if engine.name == "docker":
        return cache_dir() / "used" / name.replace("/", "_").replace(":", "_")
    files = (engine.store.root / "images").glob("*.json")
    return next(file for file in files if f"/{name}" in file.read_text())


def test_build_list_prune(folder, engine):
    first = tool("image", "build", "recipe.toml", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "made in " in first.stdout
    name = first.stdout.split(": ", 1)[1].split()[0]
    again = tool("image", "build", "recipe.toml", cwd=folder)
    assert "at hand" in again.stdout
    assert name in again.stdout
    rebuilt = tool("image", "build", "recipe.toml", "--rebuild", cwd=folder)
    assert "made in " in rebuilt.stdout
    lines = [
        json.loads(line) for line in tool("image", "list", "--json", cwd=folder).stdout.splitlines()
    ]
    ours = next(line for line in lines if line["name"] == name)
    assert (ours["kind"], ours["family"], ours["arch"]) == ("image", "debian", host_arch())
    assert ours["age"] < 120
    assert ours["last_use"] < 60
    assert name in tool("image", "list", cwd=folder).stdout
    # So long ago that nothing else of this machine's user is as old.
    assert "nothing to remove" in tool("image", "prune", "--older-than", "300d", cwd=folder).stdout
    os.utime(last_use_of(engine, name), (time.time() - 400 * 86400,) * 2)
    pruned = tool("image", "prune", "--older-than", "300d", cwd=folder)
    assert f"removed {name}" in pruned.stdout
    assert name not in tool("image", "list", cwd=folder).stdout


@on["docker"]
def test_build_says_what_fails(folder, engine):
    (folder / "broken.toml").write_text(
        RECIPE.replace(
            '"group_add"\ngroup = "sandboxers"', '"apt_install"\npackages = ["no-such-pkg-x"]'
        )
    )
    done = tool("image", "build", "broken.toml", "recipe.toml", cwd=folder)
    assert done.returncode == 1
    assert "broken.toml on linux/" in done.stderr
    assert "no-such-pkg-x" in done.stderr
    assert "a-group on linux/" in done.stdout
    assert tool("image", "build", "missing.toml", cwd=folder).returncode == 2
    assert (
        tool("image", "build", "recipe.toml", "--target", "linux/x/y", cwd=folder).returncode == 2
    )


@on["oci"]
def test_bootstrap_names_what_it_cannot_do(folder):
    done = tool("image", "bootstrap", "alpine", cwd=folder)
    assert done.returncode == 1
    assert "image: unsupported: a base of alpine cannot be bootstrapped" in done.stderr
    assert tool("image", "bootstrap", "nosuch", cwd=folder).returncode == 2
    assert tool("image", "bootstrap", "debian", "--arch", "sparc", cwd=folder).returncode == 2


def test_doctor_finds_the_engine(engine):
    done = tool("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["usable"] is True
    used = next(one for one in found["engines"] if one["runtime"] == engine.name)
    assert used["usable"] is True
    assert used["version"] == engine.info().version
    assert host_arch() in used["arches"]
    assert used["cgroups"] in {"v1", "v2", "hybrid"}
    assert {base["family"] for base in found["bases"]} >= {"debian", "alpine"}
    assert found["next_step"].startswith(("pytest --sandbox", "apt-get install"))
    text = tool("doctor").stdout
    assert f"{used['runtime']} {used['version']}" in text
    assert text.count("Next step:") == 1


@on["docker"]
def test_doctor_without_an_engine(tmp_path, engine):
    assert engine.name == "docker"  # what the command is told to use, and does not find
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "HTTPS_PROXY": "http://u:hunter22@p:1"}
    done = tool("doctor", env=env)
    assert done.returncode == 1
    assert f"no   no socket at unix://{tmp_path}/none.sock (DOCKER_HOST)" in done.stdout
    assert "https_proxy=http://[REDACTED]@p:1" in done.stdout
    assert "hunter22" not in done.stdout
    found = json.loads(tool("doctor", "--json", env=env).stdout)
    assert found["usable"] is False
    assert found["next_step"]
    assert "hunter22" not in str(found)


@pytest.fixture
def kept(engine):
    """The id of a kept sandbox with a file, a variable and a folder of its own."""
    base = ensure_base(engine, load_families()["debian"].image, DEBIAN)
    system = engine.start(SandboxSpec(base.name, DEBIAN, Limits()), current_owner("test-shell"))
    try:
        system.run(["sh", "-c", "mkdir /srv/here && echo content > /srv/here/file"])
        identity = keep(system, {"GREETING": "hello there"}, "/srv/here")
    finally:
        system.close()
    yield identity
    engine.remove_image(f"{KEPT}:{identity}")


def sandboxes(engine, identity):
    """What is there of a kept image's shells."""
    if engine.name == "docker":
        return engine.client.containers(all=True, filters={"ancestor": f"{KEPT}:{identity}"})
    return [one for one in Containers(engine.store.root).all() if identity in one.record.image]


def test_shell_runs_a_script_without_a_terminal(kept, engine):
    done = tool("shell", kept, stdin='pwd; cat file; echo "$GREETING"; echo wrong >&2; exit 7\n')
    assert done.returncode == 7
    assert done.stdout == "/srv/here\ncontent\nhello there\n"
    assert done.stderr == "wrong\n"
    assert sandboxes(engine, kept) == []
    tool("shell", kept, stdin="rm file\n")
    assert tool("shell", kept, stdin="cat file\n").stdout == "content\n"
    many = tool("shell", kept, stdin="seq 1 100000\n").stdout.split()
    assert (len(many), many[-1]) == (100000, "100000")


def test_shell_lists_and_removes(kept, engine):
    assert f"{kept}  {DEBIAN}" in tool("shell", "--list").stdout
    wrong = tool("shell", "nothing-like-it")
    assert wrong.returncode == 2
    assert kept in wrong.stderr
    assert tool("shell").returncode == 2
    assert tool("shell", "--rm", kept).returncode == 0
    assert engine.find_image(f"{KEPT}:{kept}") is None


def test_shell_has_a_terminal(kept, engine):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*TOOL, "shell", kept])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    before = termios.tcgetattr(terminal)
    try:
        _until(terminal, b"# ")
        assert termios.tcgetattr(terminal)[3] != before[3]  # raw while the shell runs
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 99, 0, 0))
        time.sleep(0.5)
        os.write(terminal, b"stty size; tty; echo end-$((1+1))\r")
        seen = _until(terminal, b"end-2")
        assert b"44 99" in seen
        assert b"/dev/" in seen
        os.write(terminal, b"sleep 100\r")
        time.sleep(0.5)
        os.write(terminal, b"\x03")  # Ctrl-C goes into the sandbox, not to the tool
        os.write(terminal, b"exit 5\r")
        _until(terminal, None)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5
        assert termios.tcgetattr(terminal)[3] == before[3]
    finally:
        os.close(terminal)
    assert sandboxes(engine, kept) == []


def _until(terminal, text):
    seen, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                return seen
            if not data:
                return seen
            seen += data
        if text is not None and text in seen:
            return seen
    pytest.fail(f"{text!r} did not come; there was {seen!r}")
