"""A recipe that downloads, unpacks and installs, from loopback; and whose fault it is."""

from __future__ import annotations

import hashlib
import io
import tarfile
import uuid

import pytest

from pytest_sandbox.targets import host_arch
from tests.acceptance.leftovers import on
from tests.acceptance.running import run_pytest
from tests.recipes.site import closed_port, serve
from tests.recipes.templates import fill

pytestmark = pytest.mark.usefixtures("engine")

ARCHIVE = f"hello-1.0-Linux-{host_arch()}.tar.gz"


@pytest.fixture
def site(tmp_path):
    """A folder that holds the archive of version 1.0 with its checksum, and a script.

    The download cache goes by content: that of every test is its own.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    mark = uuid.uuid4().hex
    program = f"#!/bin/sh\n# {mark}\necho 'hello, 1.0'\n".encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo("hello-1.0/bin/hello-download")
        member.size, member.mode = len(program), 0o755
        tar.addfile(member, io.BytesIO(program))
    data = out.getvalue()
    (folder / ARCHIVE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (folder / f"{ARCHIVE}.sha256").write_text(f"{digest}  {ARCHIVE}\n")
    (folder / "hello.sh").write_text(f"#!/bin/sh\n# {mark}\necho 'hello from a script'\n")
    return folder


def prove(folder, recipe):
    """Run the recipe on Debian."""
    return run_pytest(
        folder, recipe, "--sandbox-target=debian", "--sandbox-version=hello-download=1.0"
    )


def only(run):
    """The one item of a run."""
    assert len(run.cases) == 1, run.output
    return next(iter(run.cases.values()))


def test_archive_with_a_checksum_beside_it(tmp_path, site):
    with serve(site) as port:
        run = prove(tmp_path, fill("hello-download", tmp_path, PORT=port))
    assert only(run).outcome == "passed", run.output
    assert run.status == 0


def test_pinned_script(tmp_path, site):
    digest = hashlib.sha256((site / "hello.sh").read_bytes()).hexdigest()
    with serve(site) as port:
        run = prove(tmp_path, fill("hello-pinned", tmp_path, PORT=port, SHA256=digest))
    assert only(run).outcome == "passed", run.output


@on["oci"]
def test_missing_archive_is_upstreams_fault(tmp_path, site):
    (site / ARCHIVE).unlink()
    with serve(site) as port:
        run = prove(tmp_path, fill("hello-download", tmp_path, PORT=port))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("install: upstream: "), case.message
    assert "404" in case.message
    assert run.status == 1


@on["oci"]
def test_another_archive_is_upstreams_fault(tmp_path, site):
    (site / f"{ARCHIVE}.sha256").write_text(f"{'0' * 64}  {ARCHIVE}\n")
    with serve(site) as port:
        run = prove(tmp_path, fill("hello-download", tmp_path, PORT=port))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("install: upstream: "), case.message


@on["oci"]
def test_another_script_is_upstreams_fault(tmp_path, site):
    with serve(site) as port:
        run = prove(tmp_path, fill("hello-pinned", tmp_path, PORT=port, SHA256="0" * 64))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("install: upstream: "), case.message


@on["oci"]
def test_closed_server_is_the_networks_fault(tmp_path):
    run = prove(tmp_path, fill("hello-download", tmp_path, PORT=closed_port()))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("install: network: "), case.message


@on["oci"]
def test_no_version_is_a_skip_with_the_option_to_use(tmp_path, site):
    with serve(site) as port:
        recipe = fill("hello-download", tmp_path, PORT=port)
        run = run_pytest(tmp_path, recipe, "--sandbox-target=debian")
    case = only(run)
    assert case.outcome == "skipped", run.output
    assert "--sandbox-version hello-download=VERSION" in case.message
