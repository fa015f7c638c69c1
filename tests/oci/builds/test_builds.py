"""Images that are built without a daemon: what is in them, and what cannot be built."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import Blame, BuildFailed, SandboxError
from pytest_sandbox.limits import Limits
from pytest_sandbox.oci.exporting import export_image
from pytest_sandbox.oci.importing import import_images
from pytest_sandbox.runtimes.base import BuildRequest, SandboxSpec
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner, owner_is_dead
from tests.oci.builds.conftest import NAME, TARGET, remove, tiny
from tests.oci.requiring import fuse_overlayfs, missing
from tests.oci.store.seeing import diffs, left_over
from tests.oci.supervisor.conftest import soon

ROOT = Path(__file__).parents[3]


def test_layers_hold_what_the_commands_did_and_nothing_else(runtime, build, output):
    image = build(
        "RUN echo one >/etc/one; mount >/dev/null; cat /etc/resolv.conf /etc/hosts >/dev/null",
        "RUN rm -r /data/old && mkdir /data/old && touch /data/old/new",
        "RUN ls / >/dev/null",
        "RUN rm /etc/one",
    )
    _, first, second, third = diffs(runtime.store, image)
    assert first == {"etc": None, "etc/one": b"one\n"}
    assert second == {"data": None, "data/old": None, "data/old/new": b""}
    assert third == {"etc": None, "etc/one": "whiteout"}
    assert output(image, "ls", "/data/old", "/etc").split() == [
        "/data/old:", "new", "/etc:", "group", "hostname", "hosts", "motd", "passwd", "resolv.conf",
    ]  # fmt: skip


def test_the_config(runtime, build, output):
    said = []
    image = build(
        'LABEL one="1" two=\'a "b"\'',
        "ENV A=b PATH=/bin:/x",
        "ARG WHO=nobody",
        "ARG EMPTY",
        "WORKDIR /srv/a",
        "WORKDIR b",
        "RUN echo $A-$WHO-$http_proxy-$EMPTY-$(pwd)-$(id -u) >out",
        "USER app",
        "RUN id -u >/tmp/id",
        labels={"two": "of the request"},
        build_args={"WHO": "it's me", "http_proxy": "http://p:1", "OTHER": "x"},
        say=said.append,
    )
    config = image.config
    assert config["config"] == {
        "Cmd": ["/bin/sh"],
        "Env": ["PATH=/bin:/x", "A=b"],
        "Labels": {"from": "base", "one": "1", "two": "of the request"},
        "WorkingDir": "/srv/a/b",
        "User": "app",
    }
    assert (config["os"], config["architecture"]) == ("linux", TARGET.arch)
    assert abs(image.created - time.time()) < 60
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in image.layers]
    told = [
        (entry["created_by"], entry.get("empty_layer", False)) for entry in config["history"][1:]
    ]
    run = "echo $A-$WHO-$http_proxy-$EMPTY-$(pwd)-$(id -u) >out"
    assert told == [
        ('LABEL one="1" two=\'a "b"\'', True),
        ("ENV A=b PATH=/bin:/x", True),
        ("ARG WHO=nobody", True),
        ("ARG EMPTY", True),
        ("WORKDIR /srv/a", False),
        ("WORKDIR b", False),
        (f"RUN |1 WHO=it's me /bin/sh -c {run}", False),
        ("USER app", True),
        ("RUN |1 WHO=it's me /bin/sh -c id -u >/tmp/id", False),
        ("LABEL two=of the request", True),
    ]
    assert said[0] == "step 1/11: FROM base:1"
    assert said[7] == f"step 8/11: RUN {run}"
    assert said[-1] == "step 11/11: LABEL two=of the request"
    assert output(image, "cat", "/srv/a/b/out", "/tmp/id") == (
        "b-it's me-http://p:1--/srv/a/b-0\n1000\n"
    )


def test_copy(runtime, build, output):
    files = {"one": b"1", "folder/a": b"A" * 3000, "folder/in/b": b"", "keys/k": b"k"}
    lines = (
        "RUN ln -s data /link && chmod 700 /data && rm /etc/group",
        "COPY folder/ /new/place/",
        "COPY one /link",
        "COPY keys/k /etc/group",
        "COPY one keys/k /data/old/",
        "COPY folder relative",
    )
    image = build(*lines, files=files)
    layers = diffs(runtime.store, image)[2:]
    assert layers[0] == {
        "new": None,
        "new/place": None,
        "new/place/a": b"A" * 3000,
        "new/place/in": None,
        "new/place/in/b": b"",
    }
    assert layers[1] == {"data": None, "data/one": b"1"}
    assert layers[2] == {"etc": None, "etc/group": b"k"}
    assert layers[3] == {"data": None, "data/old": None, "data/old/one": b"1", "data/old/k": b"k"}
    assert set(layers[4]) == {"relative", "relative/a", "relative/in", "relative/in/b"}
    modes = output(image, "stat", "-c", "%a %u:%g %Y", "/new/place", "/new/place/a", "/data")
    assert modes.splitlines()[:2] == ["755 0:0 0", "644 0:0 0"]
    assert modes.splitlines()[2].startswith("700 0:0 ")
    again = build(lines[1], files=files, name=f"{NAME}-1")
    once_more = build(lines[1], files=files, name=f"{NAME}-2")
    assert again.layers == once_more.layers, "the same files give the same layer"


def test_on_top_of_what_was_built_and_of_a_snapshot(runtime, build, output):
    first = build("RUN echo 1 >/one", name=f"{NAME}-1")
    second = build("RUN echo 2 >/two", base=f"{NAME}-1", name=f"{NAME}-2")
    assert second.layers[:-1] == first.layers
    assert len(second.config["history"]) == 3
    system = runtime.start(SandboxSpec(f"{NAME}-2", TARGET, Limits()), current_owner("builds"))
    try:
        system.run(["touch", "/three"])
        system.snapshot(name=f"{NAME}-kept")
        third = build("RUN touch /four", base=f"{NAME}-kept", name=f"{NAME}-3")
    finally:
        system.close()
        runtime.remove_image(f"{NAME}-kept")
    assert len(third.layers) == 5
    assert all(layer.diff_id for layer in third.layers)
    assert output(third, "cat", "/one", "/two", "/three", "/four") == "1\n2\n"


def test_a_rebuild_takes_the_name(runtime, build, output):
    first = build("RUN echo 1 >/one")
    second = build("RUN echo 2 >/one")
    assert first.config_digest != second.config_digest
    assert output(second, "cat", "/one") == "2\n"


@pytest.mark.parametrize(
    ("lines", "said", "blame"),
    [
        (["VOLUME /x"], "line 2 of the Dockerfile .*the instruction VOLUME", Blame.UNSUPPORTED),
        (["RUN true", "COPY no /x"], "line 3 .*COPY of no, which is not in", Blame.UNSUPPORTED),
        (["COPY folder/ /etc/passwd/"], "2/2 COPY folder/ /etc/passwd/: .*ot a", Blame.RECIPE),
        (["WORKDIR /etc/passwd"], "step 2/2 WORKDIR /etc/passwd: .*ot a", Blame.RECIPE),
        (["RUN nosuch"], "2/2 RUN nosuch: the command returned a non-zero.* 127", Blame.RECIPE),
        (["RUN rm /bin/sh", "RUN true"], "3/3 RUN true: the command returned.* 127", Blame.RECIPE),
        (["USER nobody-here", "RUN true"], "step 3/3 RUN true: .*nobody-here", Blame.RECIPE),
    ],
)
def test_what_cannot_be_built(runtime, build, lines, said, blame):
    with pytest.raises(BuildFailed, match=said) as caught:
        build(*lines, files={"folder/a": b""})
    assert caught.value.blame is blame
    assert runtime.find_image(NAME) is None


def test_a_missing_base(build):
    with pytest.raises(
        BuildFailed, match=r"the image no/such:1 for .* is not in the store"
    ) as caught:
        build("RUN true", base="no/such:1")
    assert "pull no/such:1" in caught.value.next_step


@pytest.mark.parametrize("snapshotter", ["copy", "fuse-overlayfs"])
def test_without_overlay(busybox, tmp_path, snapshotter):
    if snapshotter == "fuse-overlayfs":
        fuse_overlayfs()
    other = OciRuntime(folder=tmp_path / "other", snapshotter=snapshotter)
    try:
        other.info()
    except SandboxError as error:
        other.close()
        missing(str(error))
    try:
        other.load_rootfs(tiny(busybox), "base:1", TARGET, {})
        text = (
            "FROM base:1\nCOPY x /x\nRUN rm -r /data/old && mkdir /data/old\n"
            "RUN rm /etc/motd && echo hi >/y\n"
        )
        other.build(BuildRequest(NAME, TARGET, text, {"x": b"1"}, network="none"), lambda _: None)
        image = other.image(NAME)
        filled = [one for one in image.config["history"] if not one.get("empty_layer")]
        assert len(filled) == len(image.layers) == (1 if snapshotter == "copy" else 4)
        # The files of an ended sandbox go behind it.
        assert soon(lambda: not left_over(other.store)), left_over(other.store)
        export_image(other.store, image, tmp_path / "layout", "oci")
        third = OciRuntime(folder=tmp_path / "third")
        try:
            (again,) = import_images(third.store, tmp_path / "layout")
            for runtime in (other, third):
                system = runtime.start(SandboxSpec(NAME, TARGET, Limits()), current_owner("builds"))
                found = system.run(["sh", "-c", "ls /data/old; cat /x /y; stat /etc/motd"])
                system.close()
                assert found.stdout == "1hi\n"
                assert "No such file" in found.stderr
            assert again.config_digest == image.config_digest
        finally:
            remove(third, tmp_path, "third")
    finally:
        remove(other, tmp_path, "other")


CHILD = """
import sys
from pathlib import Path
from pytest_sandbox.runtimes.base import BuildRequest
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.targets import Target
text = "FROM base:1\\nRUN touch /x\\nRUN echo begun; sleep 60\\n"
runtime = OciRuntime(folder=Path(sys.argv[2]))
runtime.supervisor.call("pytest_sandbox.oci.unpacking_jobs:ready", {})
print(runtime.supervisor.pid, flush=True)
target = Target.parse(sys.argv[1])
request = BuildRequest("tsuku/sandbox-test:killed", target, text, {}, network="none")
runtime.build(request, lambda line: print(line, flush=True))
"""


def test_a_build_that_is_killed_with_its_supervisor(runtime):
    """Nothing tidies up then; the next session does."""
    before = runtime.store.layers.all()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(TARGET), str(runtime.store.root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    supervisor = int(child.stdout.readline())
    assert supervisor > 1
    assert any("sleep" in line for line in iter(child.stdout.readline, ""))
    time.sleep(1.0)
    owners = runtime.store.root / "owners"
    (name,) = (path.name for path in owners.glob("ps-build-*"))
    for pid in (supervisor, child.pid):
        os.kill(pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert set(left_over(runtime.store)) >= {"leases", "tmp"}

    def is_dead(owner, created):
        return owner_is_dead(owner, created, time.time())

    deadline = time.monotonic() + 10  # a killed sandbox goes when the kernel comes to it
    while (owners / name).exists() or left_over(runtime.store):
        assert time.monotonic() < deadline, left_over(runtime.store)
        runtime.reap(is_dead)
        time.sleep(0.1)
    assert not runtime.machine.access.cgroups.paths(name).exists()
    assert runtime.store.layers.all() == before
