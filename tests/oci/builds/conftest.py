"""A runtime with a store of its own and a tiny base in it, and builds on top."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import BuildRequest, SandboxSpec
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch
from tests.oci.requiring import missing, static_busybox
from tests.oci.store.seeing import left_over
from tests.oci.supervisor.conftest import soon

TARGET = Target("linux", host_arch(), "debian")
NAME = "tsuku/sandbox-test:built"
APPLETS = "sh cat id ls mkdir rm touch stat ln chmod chown env pwd sleep mount setfattr"


def tiny(busybox):
    """A system of busybox and two accounts: no /etc/hosts, no /proc, no /dev."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def add(name, data=None, *, link="", mode=0o755):
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = mode, 1_700_000_000
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))

        for folder in ("bin", "etc", "data", "data/old", "root"):
            add(folder)
        add("tmp", mode=0o1777)
        add("bin/busybox", busybox.read_bytes())
        for applet in APPLETS.split():
            add(f"bin/{applet}", link="busybox")
        add("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n", mode=0o644)
        add("etc/group", b"root:x:0:\napp:x:1001:\n", mode=0o644)
        add("etc/motd", b"hi", mode=0o600)
        add("data/old/file", b"old", mode=0o644)
    out.seek(0)
    return out


@pytest.fixture(scope="session")
def busybox():
    return static_busybox()


@pytest.fixture(scope="session")
def runtime(busybox, tmp_path_factory):
    """The runtime with a store of its own, and `base:1` in it."""
    place = tmp_path_factory.mktemp("builds")
    found = OciRuntime(folder=place / "oci")
    try:
        found.info()
    except SandboxError as error:
        missing(str(error))
    found.load_rootfs(tiny(busybox), "base:1", TARGET, {"from": "base"})
    yield found
    remove(found, place, "oci")


def remove(runtime, place, name):
    """Close a runtime and remove its store, whoever the files belong to."""
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    job = "pytest_sandbox.oci.layers.jobs:remove"
    runtime.supervisor.call(job, {"names": [name]}, [folder], where="host")
    os.close(folder)
    runtime.close()


@pytest.fixture
def build(runtime):
    """Build from lines after FROM; what a test built is removed."""
    names = set()

    def make(*lines, base="base:1", name=NAME, files=None, say=lambda _line: None, **more):
        text = "\n".join([f"FROM {base}", *lines]) + "\n"
        context = {"Dockerfile": text.encode(), **(files or {})}
        more = {"network": "none", **more}
        names.add(name)
        info = runtime.build(BuildRequest(name, TARGET, text, context, **more), say)
        image = runtime.image(name)
        assert info.digest == image.config_digest
        return image

    yield make
    for name in names:
        runtime.remove_image(name)
    # The files of an ended sandbox go behind it.
    assert soon(lambda: not left_over(runtime.store)), left_over(runtime.store)


@pytest.fixture
def output(runtime):
    """What a command writes in a sandbox from an image."""

    def run(image, *argv):
        spec = SandboxSpec(image.reference.familiar, TARGET, Limits())
        system = runtime.start(spec, current_owner("builds"))
        try:
            found = system.run(argv)
            assert found.ok, found.stderr
            return found.stdout
        finally:
            system.close()

    return run
