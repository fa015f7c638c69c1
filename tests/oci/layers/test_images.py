"""Images that docker, buildah and our own builder made are the same trees as with `umoci unpack`.

All three build the same Dockerfile over the same base; it adds, changes, replaces and removes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.images.families import load_families
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.bases import ensure_base
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.targets import Target, host_arch
from tests.oci.layers.stacks import same, tree, umoci_unpack
from tests.oci.requiring import missing, program

ROOT = Path(__file__).parents[3]
NAME = f"localhost/layers-{secrets.token_hex(4)}"
RUNS = [
    "mkdir -p /srv/a/b; printf one >/srv/a/b/one; ln /srv/a/b/one /srv/two; ln -s ../srv/a /srv/l",
    "touch -d '2001-02-03 04:05:06.123456789' /srv/l/b; mkfifo -m 622 /srv/fifo",
    "chown 1000:65534 /srv/a; chmod 4755 /srv/a/b/one; mkdir -m 1777 /srv/t",
    "rm -rf /usr/share/doc /etc/motd; mkdir -p /usr/share/doc/new",
]
AGAIN = [
    "rm -r /srv/a/b; ln -s ../files /srv/a/b; ln /etc/passwd /etc/passwd2; chmod 711 /srv/files",
    "mv /srv/files /srv/moved; rm /srv/fifo; mkdir /srv/fifo; rm /srv/l; printf x >/srv/l",
    "chmod 600 /srv/two; rm -rf /var/lib/dpkg/info; touch /var/lib/dpkg/info",
]
STEPS = f"RUN set -e; {'; '.join(RUNS)}\nCOPY files /srv/files\nRUN set -e; {'; '.join(AGAIN)}\n"
FILES = {"files/größe": b"1" * 70_000, "files/in/deep": b"x"}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="umoci needs root to keep owners")


def call(*words, **more):
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def connected(make):
    runtime = make()
    try:
        runtime.info()
    except SandboxError as error:
        missing(str(error))
    return runtime


def request_for(runtime):
    target = Target("linux", runtime.info().arches[0], "debian")
    base = ensure_base(runtime, load_families()["debian"].image, target).name
    dockerfile = f"FROM {base}\n{STEPS}"
    files = {**FILES, "Dockerfile": dockerfile.encode()}
    return BuildRequest(NAME, target, dockerfile, files, network="none")


def by_docker(folder):
    """A layout with the tag `it`, as skopeo makes it of what `docker save` writes."""
    program("skopeo")
    program("docker", "docker.io")
    runtime = connected(DockerRuntime)
    runtime.build(request_for(runtime), lambda _: None)
    try:
        call("docker", "-H", runtime.info().endpoint, "save", "-o", folder / "saved.tar", NAME)
    finally:
        runtime.remove_image(NAME)
        runtime.close()
    call("skopeo", "copy", "-q", f"docker-archive:{folder}/saved.tar", f"oci:{folder}/layout:it")
    return folder / "layout"


def by_us(folder):
    runtime = connected(OciRuntime)
    runtime.build(request_for(runtime), lambda _: None)
    try:
        ours("export", NAME, folder / "layout", "--format", "oci")
    finally:
        runtime.remove_image(NAME)
        runtime.close()
    return folder / "layout"


def by_buildah(folder):
    program("buildah")
    runtime = connected(OciRuntime)
    target = Target("linux", host_arch(), "debian")
    base = ensure_base(runtime, load_families()["debian"].image, target).name
    runtime.close()
    ours("export", base, folder / "base", "--format", "oci")
    context = folder / "context"
    for name, content in FILES.items():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_bytes(content)
    (context / "Dockerfile").write_text(f"FROM oci:{folder}/base\n{STEPS}")
    (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    buildah = ["buildah", "--root", folder / "graph", "--runroot", folder / "run"]
    buildah += ["--storage-driver", "vfs"]
    more = ["--signature-policy", folder / "policy.json"]
    try:
        words = ["build", "-q", "--isolation", "chroot", "--layers", *more, "-t", NAME, context]
        call(*buildah, *words)
        call(*buildah, "push", "-q", *more, NAME, f"oci:{folder}/layout:it")
    finally:
        call(*buildah, "rmi", "--all", "--force")
    return folder / "layout"


def ours(*words, data=None):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    if data is not None:
        environ["PYTEST_SANDBOX_DATA"] = str(data)
    return call(sys.executable, "-m", "pytest_sandbox.cli", "image", *words, env=environ)


def without_devices(ours, theirs):
    """Devices are placeholders here: everything but kind and number is the same."""
    for path, facts in list(theirs.items()):
        if facts[0] in {stat.S_IFCHR, stat.S_IFBLK}:
            assert ours[path][0] == stat.S_IFREG
            assert ours.pop(path)[1:5] == theirs.pop(path)[1:5]
    return ours, theirs


@pytest.mark.parametrize("build", [by_docker, by_buildah, by_us])
def test_the_same_tree_as_umoci(build, tmp_path):
    program("umoci")
    layout = build(tmp_path)
    tag_as_it(layout)
    since = time.time_ns()
    theirs = umoci_unpack(layout, "it", tmp_path / "bundle")
    assert theirs is not None
    data = tmp_path / "data"
    ours("import", layout, NAME, data=data)
    ours("unpack", NAME, tmp_path / "unpacked", "--pull", "never", data=data)
    mine, others = same(tree(tmp_path / "unpacked/rootfs"), tree(theirs, since=since))
    mine, others = without_devices(mine, others)
    assert mine.keys() == others.keys()
    assert {path: facts for path, facts in mine.items() if others[path] != facts} == {}
    assert mine[b"srv/moved/in/deep"][0] == stat.S_IFREG
    shutil.rmtree(data)


def tag_as_it(layout):
    """umoci wants a short name for the layout's only image."""
    index = json.loads((layout / "index.json").read_text())
    (entry,) = index["manifests"]
    entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (layout / "index.json").write_text(json.dumps(index))
