"""`pytest-sandbox image`, as a user calls it, against a real registry and other tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.oci.requiring import missing, program
from tests.oci.store.making import BASE, SECOND, THIRD, Made
from tests.oci.store.seeing import listing, tree

ROOT = Path(__file__).parents[3]
APP = Made(BASE, SECOND, THIRD)


@pytest.fixture
def tool(tmp_path, supervisor):
    """Calls the command with a store of its own; `ok=False` expects an error."""
    environ = {**os.environ, "PYTEST_SANDBOX_DATA": str(tmp_path / "data-store")}
    environ |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def call(*words, ok=True):
        done = subprocess.run(
            [sys.executable, "-m", "pytest_sandbox.cli", "image", *map(str, words)],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    yield call
    folder = os.open(tmp_path, os.O_RDONLY)
    names = {"names": ["data-store", "un"]}
    supervisor.call("pytest_sandbox.oci.layers.jobs:remove", names, [folder], where="host")
    os.close(folder)


@pytest.fixture
def pushed(tool, registry, tmp_path):
    """The name of an image that is in the real registry and no more in the store."""
    name = f"{registry.host}/verbs/app:1"
    layout = APP.layout(tmp_path / "layout")
    assert APP.digest in tool("import", layout, name).stdout
    assert tool("push", name).stdout == f"{name}: {APP.digest}\n"
    tool("rm", name)
    return name


def test_pull_list_verify_rm(tool, pushed):
    first = tool("pull", pushed)
    assert first.stdout.startswith(f"{pushed}: linux/")
    assert APP.digest in first.stdout
    assert first.stderr.count("unpacked") == 3
    again = tool("pull", pushed, "--pull=missing", "-q")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    (line,) = [
        json.loads(line) for line in tool("list", "--runtime", "oci", "--json").stdout.splitlines()
    ]
    assert (line["name"], line["runtime"], line["kind"]) == (pushed, "oci", "pulled")
    assert line["digest"] == APP.digest
    assert line["last_use"] < 60
    assert pushed in tool("list", "--runtime", "oci").stdout
    assert "1 images, 3 layers, 5 blobs: all is well" in tool("verify").stdout
    removed = tool("rm", pushed).stdout
    assert f"removed {pushed}" in removed
    assert tool("list", "--runtime", "oci").stdout.startswith("no images yet")
    assert "is not in the store" in tool("rm", pushed, ok=False).stderr


def test_prune_goes_by_last_use(tool, pushed, tmp_path):
    tool("pull", "-q", pushed)
    assert tool("prune", "--runtime", "oci").stdout == "nothing to remove\n"
    when = time.time() - 3 * 86400
    for file in (tmp_path / "data-store/oci/images").iterdir():
        os.utime(file, (when, when))
    assert "nothing" in tool("prune", "--runtime", "oci", "--older-than", "4d").stdout
    assert f"removed {pushed}" in tool("prune", "--runtime", "oci", "--older-than", "2d").stdout
    tool("pull", "-q", pushed)
    pruned = tool("prune", "--runtime", "oci", "--all").stdout
    assert f"removed {pushed}" in pruned
    assert listing(tmp_path / "data-store/oci/layers") == []
    assert listing(tmp_path / "data-store/oci/blobs/sha256") == []


def test_verify_finds_damage(tool, pushed, tmp_path):
    tool("pull", "-q", pushed)
    layer = APP.packed[1]
    blobs = tmp_path / "data-store/oci/blobs/sha256"
    (file,) = [file for file in blobs.iterdir() if file.read_bytes() == layer]
    file.chmod(0o600)
    file.write_bytes(b"X" + layer[1:])
    done = tool("verify", ok=False)
    assert f"damaged: {pushed}, layer 2: the blob sha256:{file.name}" in done.stdout
    assert "1 damaged" in done.stdout
    tool("pull", "-q", pushed)
    assert "all is well" in tool("verify", pushed).stdout


def test_export_and_import(tool, pushed, tmp_path):
    tool("pull", "-q", pushed)
    tool("export", pushed, "out")
    assert (tmp_path / "out" / "oci-layout").is_file()
    tool("export", pushed, "out.tar")
    tool("export", "--format", "docker-archive", pushed, "docker.tar")
    tool("rm", pushed)
    for source, digest in (("out", APP.digest), ("out.tar", APP.digest), ("docker.tar", "")):
        told = tool("import", source).stdout
        assert told.startswith(f"{pushed}: ")
        assert digest in told
        tool("rm", pushed)
    assert "other.example/x:2: " in tool("import", "out", "other.example/x:2").stdout
    assert "there already" in tool("export", "other.example/x:2", "out", ok=False).stderr


@pytest.fixture(params=["docker", "podman"])
def loader(request):
    """The command line of an engine that loads images."""
    program(request.param, {"docker": "docker.io"}.get(request.param, ""))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="p-") as folder:  # podman wants it short
        words = [request.param]
        if request.param == "podman":
            words += ["--root", f"{folder}/p", "--runroot", f"{folder}/r"]
        if subprocess.run([*words, "info"], capture_output=True, check=False).returncode:
            missing(f"{request.param} does not work here")
        yield words


def test_engines_load_what_we_export_and_the_other_way(tool, pushed, tmp_path, loader):
    tool("pull", "-q", pushed)
    tool("export", "--format", "docker-archive", pushed, "docker.tar")
    subprocess.run([*loader, "load", "-i", tmp_path / "docker.tar"], check=True)
    words = ["image", "inspect", "--format", "{{json .RootFS.Layers}}", pushed]
    done = subprocess.run([*loader, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == APP.diff_ids
    subprocess.run([*loader, "save", "-o", tmp_path / "saved.tar", pushed], check=True)
    subprocess.run([*loader, "rmi", pushed], check=True)
    tool("rm", pushed)
    assert tool("import", "saved.tar").stdout.startswith(f"{pushed}: ")


def test_unpack_gives_the_tree_and_its_ids(tool, pushed, tmp_path):
    done = tool("unpack", pushed, "un")
    root = tmp_path / "un" / "rootfs"
    assert done.stdout.startswith("un/rootfs: ")
    assert tree(root) == {
        "bin": None,
        "bin/sh": b"third",
        "etc": None,
        "etc/other": b"second",
        "new": None,
        "new/link": "-> ../bin/sh",
    }
    assert (root / "bin/sh").stat().st_uid == os.geteuid()
    assert (tmp_path / "un").stat().st_mode & 0o777 == 0o700
    assert "cannot be made" in tool("unpack", pushed, "un", ok=False).stderr
    assert tree(root)["etc/other"] == b"second"


def test_push_elsewhere(tool, pushed, registry):
    tool("pull", "-q", pushed)
    other = f"{registry.host}/verbs/other:2"
    assert tool("push", "-q", pushed, other).stdout == f"{other}: {APP.digest}\n"
    assert APP.digest in tool("pull", "-q", other).stdout


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (("pull", "some/Case"), 2, "is no image reference"),
        (("pull", "example.org/x", "--platform", "no/such/cpu/x"), 2, "platform"),
        (("export", "example.org/none:1", "x"), 1, "is not in the store"),
        (("push", "example.org/none:1"), 1, "is not in the store"),
        (("import", "nothing-here"), 2, "cannot be read"),
        (("unpack", "example.org/none:1", "x", "--pull=never"), 1, "not to be pulled"),
    ],
)
def test_wrong_calls_are_told(tool, words, status, problem):
    done = tool(*words, ok=False)
    assert done.returncode == status
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_bounds_and_mirrors_come_from_settings(tool, pushed, registry, tmp_path):
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nsandbox_registry_mirror = far.example=http://{registry.host}\n"
        "sandbox_image_bound = layers=2\n"
    )
    name = pushed.replace(registry.host, "far.example")
    assert "has 3 layers; at most 2 are taken" in tool("pull", "-q", name, ok=False).stderr
    settings = (tmp_path / "pytest.ini").read_text().replace("layers=2", "layers=3")
    (tmp_path / "pytest.ini").write_text(settings)
    assert APP.digest in tool("pull", "-q", name).stdout
