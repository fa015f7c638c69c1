"""What is built here runs under Docker and Podman, and what they build runs here."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time

import pytest

from pytest_sandbox.oci.exporting import export_image
from pytest_sandbox.oci.importing import import_images
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.sources import ImageSource
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from tests.oci.builds.conftest import NAME, remove
from tests.oci.layers.stacks import same, tree, umoci_unpack
from tests.oci.requiring import missing, program
from tests.oci.store.seeing import diffs

LINES = (
    'LABEL made="here" a.b="two words"',
    "ENV GREETING=hello",
    "RUN echo old >/etc/one && mkdir -m 1777 /shared && chown app:app /shared && ln /etc/one /two",
    "RUN rm -r /data/old && mkdir /data/old && echo new >/data/old/new && rm /two && ln -s one /l",
    'RUN echo "$GREETING" >/etc/one && chmod 4755 /etc/one && mv /etc/motd /etc/greeting',
)
LOOK = "cat /etc/one /data/old/new; stat -c '%n %a %u:%g' /etc/one /shared; ls /data/old /etc | cat"
SEEN = "hello\nnew\n/etc/one 4755 0:0\n/shared 1777 1000:1001\n/data/old:\nnew\n\n/etc:\n"
ETC = ("greeting", "group", "one", "passwd")
ENGINES_OWN = {"hostname", "hosts", "mtab", "resolv.conf"}


def check(said, *more):
    """What LOOK has to show; each engine has files of its own in /etc."""
    assert said.startswith(SEEN)
    assert sorted(set(said.removeprefix(SEEN).split()) - ENGINES_OWN) == sorted([*ETC, *more])


class Engine:
    """The command line of Docker or Podman; `run` starts a container without a network."""

    def __init__(self, words, run):
        self._words, self._run = words, run

    def __call__(self, *arguments, **more):
        done = subprocess.run([*self._words, *arguments], capture_output=True, check=False, **more)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def run(self, *arguments):
        return self("run", "--rm", "--network", "none", *self._run, *arguments)


@pytest.fixture(params=["docker", "podman"])
def engine(request):
    program(request.param, {"docker": "docker.io"}.get(request.param, ""))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="p-") as folder:  # podman wants it short
        words, run = [request.param], []
        if request.param == "podman":
            words += ["--root", f"{folder}/p", "--runroot", f"{folder}/r"]
            words += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
            words += ["--runtime", "runc"]
            run = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        if subprocess.run([*words, "info"], capture_output=True, check=False).returncode:
            missing(f"{request.param} does not work here")
        found = Engine(words, run)
        yield found
        found("rmi", "--force", NAME)


def test_engines_run_what_is_built_here(runtime, build, output, engine, tmp_path):
    image = build(*LINES)
    check(output(image, "sh", "-c", LOOK))
    whole = export_image(runtime.store, image, tmp_path / "out.tar", "docker-archive")
    assert whole.config_digest == image.config_digest, "the image is known before it is exported"
    engine("load", "-i", str(tmp_path / "out.tar"))
    (told,) = json.loads(engine("image", "inspect", NAME))
    assert told["Id"].removeprefix("sha256:") == image.config_digest.removeprefix("sha256:")
    assert told["Config"]["Labels"] == {"from": "base", "made": "here", "a.b": "two words"}
    assert "GREETING=hello" in told["Config"]["Env"]
    assert told["RootFS"]["Layers"] == [layer.diff_id for layer in image.layers]
    history = engine("history", "--no-trunc", "--format", "{{.CreatedBy}}", NAME).splitlines()
    assert history[::-1][1:3] == [LINES[0], LINES[1]]
    assert history[0] == f"RUN /bin/sh -c {LINES[-1].removeprefix('RUN ')}"
    check(engine.run(NAME, "sh", "-c", LOOK))


@pytest.fixture
def elsewhere(runtime, engine, tmp_path):
    """An image that an engine built from the same lines on our base, as a file; its Dockerfile."""
    export_image(runtime.store, runtime.image("base:1"), tmp_path / "base.tar", "docker-archive")
    engine("load", "-i", str(tmp_path / "base.tar"))
    (tmp_path / "context").mkdir()
    text = "\n".join(["FROM base:1", *LINES, "COPY Dockerfile /etc/g-file"]) + "\n"
    (tmp_path / "context" / "Dockerfile").write_text(text)
    engine("build", "--network", "none", "-t", NAME, str(tmp_path / "context"))
    engine("save", "-o", str(tmp_path / "saved.tar"), NAME)
    engine("rmi", "base:1")
    yield tmp_path / "saved.tar", text
    runtime.remove_image(NAME)


def test_what_engines_build_runs_here(runtime, output, elsewhere):
    saved, text = elsewhere
    (image,) = import_images(runtime.store, saved, parse_reference(NAME))
    assert image.labels["a.b"] == "two words"
    check(output(image, "sh", "-c", LOOK), "g-file")
    assert output(image, "cat", "/etc/g-file") == text
    assert runtime.image("base:1").keys[0] in runtime.store.layers.all()


def test_another_store_takes_the_same_image(runtime, build, tmp_path):
    image = build(*LINES)
    export_image(runtime.store, image, tmp_path / "layout", "oci")
    other = OciRuntime(folder=tmp_path / "other")
    try:
        (again,) = import_images(other.store, tmp_path / "layout")
        assert (again.reference, again.config_digest) == (image.reference, image.config_digest)
        assert again.keys == image.keys, "layers are named by their content"
        assert diffs(other.store, again) == diffs(runtime.store, image)
    finally:
        remove(other, tmp_path, "other")


@pytest.fixture
def umoci():
    if os.geteuid() != 0:
        pytest.skip("umoci needs root to keep owners")
    program("umoci")
    program("skopeo")


def tree_of(runtime, image, folder):
    """The tree of an image's layers in the store, with the image's own ids."""
    folder.mkdir(mode=0o755)
    first_uid, first_gid = runtime.supervisor.ids.root
    os.chown(folder, first_uid, first_gid)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    ImageSource(image, runtime.store).fill(descriptor)
    os.close(descriptor)
    return {
        path: (*seen[:2], seen[2] - first_uid, seen[3] - first_gid, *seen[4:])
        for path, seen in tree(folder).items()
    }


@pytest.mark.usefixtures("umoci")
def test_the_same_tree_as_umoci_unpacks(runtime, build, tmp_path):
    image = build(*LINES, "COPY folder/ /deep/er/", files={"folder/x": b"y"})
    export_image(runtime.store, image, tmp_path / "layout", "oci")
    theirs = umoci_unpack(tmp_path / "layout", image.reference.tag, tmp_path / "bundle")
    mine = tree_of(runtime, image, tmp_path / "ours")
    assert len(mine) > 30
    assert mine == tree(theirs)


@pytest.mark.usefixtures("umoci")
def test_the_same_tree_as_umoci_unpacks_of_what_engines_build(runtime, elsewhere, tmp_path):
    saved, _ = elsewhere
    copy = ["skopeo", "copy", f"docker-archive:{saved}", f"oci:{tmp_path}/layout:it"]
    subprocess.run(copy, check=True, capture_output=True)
    since = time.time_ns()
    theirs = umoci_unpack(tmp_path / "layout", "it", tmp_path / "bundle")
    (image,) = import_images(runtime.store, saved, parse_reference(NAME))
    mine, others = same(tree_of(runtime, image, tmp_path / "ours"), tree(theirs, since=since))
    assert len(mine) > 30
    assert mine == others
