"""Images on a real engine: built once, checked before use, rebuilt when old, pruned by last use."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import sys
import tarfile
import textwrap
import time

import pytest

from pytest_sandbox.errors import Blame, BuildFailed, ImageUnavailable
from pytest_sandbox.images.families import load_families
from pytest_sandbox.images.name import HASH_LABEL, image_hash
from pytest_sandbox.images.requirements import SystemRequirements
from pytest_sandbox.images.spec import derive_spec
from pytest_sandbox.limits import Limits
from pytest_sandbox.provision import bases
from pytest_sandbox.provision.certificates import extra_certificates, fingerprint
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.bases import ensure_base
from pytest_sandbox.runtimes.images import ensure_image
from pytest_sandbox.runtimes.last_use import cached_images, prune
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch

ARCH = host_arch()
OTHER = "arm64" if ARCH == "amd64" else "amd64"
DEBIAN = Target("linux", ARCH, "debian")
REFERENCE = load_families()["debian"].image


@pytest.fixture(scope="module")
def base(engine):
    """The family's own base, as users get it."""
    return ensure_base(engine, REFERENCE, DEBIAN)


@pytest.fixture
def prefix(engine, base):
    """A repository of this test's own; its images go with it."""
    name = f"tsuku/sandbox-test-{secrets.token_hex(4)}"
    yield name
    for info in cached_images(engine, name):
        engine.remove_image(info.name)


def spec_of(**needs):
    return derive_spec(
        SystemRequirements(**needs),
        DEBIAN,
        families=load_families(),
        certificates=extra_certificates(),
        base_digests=bases.base_digests(ARCH),
    )


JQ = {"packages": {"apt": ("jq",)}}
GROUP = {"groups": ("sandboxers",)}
"""Needs no network: the quick one."""


def in_sandbox(engine, image, *argv):
    spec = SandboxSpec(image, DEBIAN, Limits())
    system = engine.start(spec, current_owner("test-images"))
    try:
        return system.run(argv)
    finally:
        system.close()


BUILDER = """
import sys
from pytest_sandbox.runtimes.detect import find_runtime
from pytest_sandbox.runtimes.images import ensure_image
from tests.acceptance.test_images import JQ, spec_of
import os
print("ready", flush=True); input()  # both begin at once
engine = find_runtime(sys.argv[2], os.environ)
said = []
done = ensure_image(engine, spec_of(**JQ), prefix=sys.argv[1], say=said.append)
print(done.info.digest, "hit" if done.hit else "built", any("waiting" in line for line in said))
"""


def test_two_processes_build_once_and_the_second_says_that_it_waits(engine, prefix, pytestconfig):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(BUILDER), prefix, engine.name],
            cwd=pytestconfig.rootpath,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    words = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        words.append(out.split())
    assert words[0][0] == words[1][0]
    assert sorted(word[1] for word in words) == ["built", "hit"]
    waited = next(word[2] for word in words if word[1] == "hit")
    assert waited == "True"
    image = cached_images(engine, prefix)[0]
    assert image.labels[HASH_LABEL] == image_hash(spec_of(**JQ))
    result = in_sandbox(engine, image.name, "jq", "--version")
    assert result.stdout.startswith("jq-1.")


def test_extra_certificates_are_trusted_inside(engine, prefix):
    certificates = extra_certificates()
    if not certificates:
        pytest.skip("this machine has no extra CA certificates")
    image = ensure_image(engine, spec_of(**GROUP), prefix=prefix).info.name
    bundle = in_sandbox(engine, image, "cat", "/etc/ssl/certs/ca-certificates.crt").stdout
    inside = {
        fingerprint(f"-----BEGIN CERTIFICATE-----{part}")
        for part in bundle.split("-----BEGIN CERTIFICATE-----")[1:]
    }
    assert {fingerprint(pem) for pem in certificates} <= inside
    assert "sandboxers" in in_sandbox(engine, image, "cat", "/etc/group").stdout


def test_proxy_values_are_not_left_in_the_image(engine, prefix):
    environ = {**os.environ, "no_proxy": "secret-host.invalid"}
    name = ensure_image(engine, spec_of(**GROUP), prefix=prefix, environ=environ).info.name
    if engine.name == "oci":
        told = str(engine.image(name).config)
    else:
        told = f"{engine.client.inspect_image(name)} {engine.client.history(name)}"
    assert "sandboxers" in told
    assert "secret-host" not in told


def test_an_old_image_is_built_anew_from_todays_packages(engine, prefix):
    spec = spec_of(**GROUP)
    first = ensure_image(engine, spec, prefix=prefix)
    assert ensure_image(engine, spec, prefix=prefix).hit is True
    time.sleep(1.1)
    second = ensure_image(engine, spec, prefix=prefix, max_age=1.0)
    assert (first.hit, second.hit) == (False, False)
    assert second.info.digest != first.info.digest  # no layer of the old one was taken
    assert engine.find_image(second.info.name).digest == second.info.digest


def test_an_image_of_another_architecture_is_not_used(engine, prefix):
    spec = spec_of(**GROUP)
    name = ensure_image(engine, spec, prefix=prefix).info.name
    engine.remove_image(name)
    foreign = Target("linux", OTHER, "debian")
    labels = {HASH_LABEL: image_hash(spec)}
    assert engine.load_rootfs(small_root(), name, foreign, labels).arch == OTHER
    done = ensure_image(engine, spec, prefix=prefix)
    assert (done.hit, done.info.arch) == (False, ARCH)


def small_root():
    """A root file system with one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    out.seek(0)
    return out


def test_offline_builds_nothing_that_reaches_for_packages(engine, prefix):
    with pytest.raises(ImageUnavailable, match="--sandbox-offline") as caught:
        ensure_image(engine, spec_of(**JQ), prefix=prefix, offline=True)
    assert caught.value.blame is Blame.HOST
    assert cached_images(engine, prefix) == []
    assert ensure_image(engine, spec_of(**GROUP), prefix=prefix, offline=True).hit is False


def test_a_failed_build_leaves_no_image(engine, prefix):
    with pytest.raises(BuildFailed) as caught:
        ensure_image(engine, spec_of(packages={"apt": ("no-such-package-here",)}), prefix=prefix)
    assert "no-such-package-here" in caught.value.details + caught.value.what
    assert cached_images(engine, prefix) == []


def test_a_rebuild_is_one_for_the_run(engine, prefix):
    spec = spec_of(**GROUP)
    first = ensure_image(engine, spec, prefix=prefix)
    done = [
        ensure_image(engine, spec, prefix=prefix, rebuild=True, rebuild_token="run")
        for _worker in range(3)
    ]
    assert [one.hit for one in done] == [False, True, True]
    assert done[0].info.digest == done[2].info.digest != first.info.digest


def test_prune_goes_by_last_use_and_spares_what_is_not_ours(engine, prefix):
    # Needs that no other test has: what somebody is building is not pruned.
    mine, others = (f"g{secrets.token_hex(4)}" for _ in range(2))
    old = ensure_image(engine, spec_of(groups=(mine,)), prefix=prefix).info
    new = ensure_image(engine, spec_of(groups=(others,)), prefix=prefix).info
    repository, _, tag = old.name.rpartition(":")
    engine.load_rootfs(small_root(), f"{repository}:somebody-elses", DEBIAN, {})
    try:
        # So long ago that nothing else of this machine's user is as old.
        long_ago = time.time() - 400 * 86400
        for info in (old, new):
            mark = bases.cache_dir() / "used" / info.name.replace("/", "_").replace(":", "_")
            assert mark.exists()
            os.utime(mark, (long_ago, long_ago))
        ensure_image(engine, spec_of(groups=(others,)), prefix=prefix)
        removed = prune(engine, older_than=300 * 86400.0, prefix=prefix)
        assert [info.name for info in removed] == [old.name]
        assert engine.find_image(new.name) is not None
        assert engine.find_image(f"{repository}:somebody-elses") is not None
        assert tag != "somebody-elses"
    finally:
        engine.remove_image(f"{repository}:somebody-elses")
