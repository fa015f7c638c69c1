"""ensure_base, ensure_image and prune on the fake runtime."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
import time
from dataclasses import replace

import msgspec
import pytest

from pytest_sandbox.errors import Blame, DownloadError, ImageUnavailable
from pytest_sandbox.images.name import HASH_LABEL, image_hash, image_name
from pytest_sandbox.images.repositories import KeyFile
from pytest_sandbox.images.spec import ImageSpec
from pytest_sandbox.provision import bases, bootstrap
from pytest_sandbox.provision.bases import BASE_LABEL, BASE_SHA_LABEL
from pytest_sandbox.provision.bootstrap import BootstrappedBase
from pytest_sandbox.runtimes.bases import base_name, bootstrap_base, suite_of
from pytest_sandbox.runtimes.fake import FakeRuntime
from pytest_sandbox.runtimes.images import ensure_base, ensure_image
from pytest_sandbox.runtimes.last_use import cached_images, imported_bases, last_use, prune
from pytest_sandbox.targets import Target, host_arch

ARCH = host_arch()
OTHER = "arm64" if ARCH == "amd64" else "amd64"
DEBIAN = Target("linux", ARCH, "debian")
TAG = "docker.io/library/debian:trixie-slim"
PINNED = f"{TAG}@sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bootstraps(monkeypatch):
    """The bootstraps that were asked for; each makes a tar with another content."""
    asked = []

    def make(suite, arch, mirror=None, *, destination, say):
        import tarfile

        asked.append((suite, arch, mirror))
        say("bootstrapping")
        with tarfile.open(destination, "w") as tar:
            entry = tarfile.TarInfo(f"made-{len(asked)}")
            tar.addfile(entry)
        data = destination.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        return BootstrappedBase(destination, sha256, len(data), suite, arch, "http://mirror")

    monkeypatch.setattr(bootstrap, "BOOTSTRAPPERS", {"debian": make})
    return asked


def spec_of(base=PINNED, target=DEBIAN, **more):
    digest = base.rpartition("@")[2] if "@" in base else ""
    more = {"packages": {"apt": ("jq",)}, "commands": ("RUN apt-get install jq",), **more}
    return ImageSpec(target=target, base=base, base_digest=digest, **more)


def engine(*images):
    return FakeRuntime(images, arches=(ARCH,))


@pytest.mark.parametrize(
    ("reference", "suite"),
    [
        (PINNED, "trixie"),
        ("debian:12-slim", "bookworm"),
        ("docker.io/library/ubuntu:24.04", "noble"),
        ("corp:5000/mirror/debian:sid", "sid"),
        ("corp:5000/debian", ""),
        ("corp/base:trixie", ""),
        ("fedora:41", ""),
    ],
)
def test_the_suite_stands_in_the_reference(reference, suite):
    assert suite_of(reference) == suite


def test_a_pinned_base_at_hand_is_used(bootstraps):
    runtime = engine(PINNED)
    assert ensure_base(runtime, PINNED, DEBIAN).name == PINNED
    assert (runtime.pulls, bootstraps) == ([], [])


def test_what_cannot_be_pulled_is_bootstrapped_once(bootstraps):
    runtime, said = engine(), []
    info = ensure_base(runtime, PINNED, DEBIAN, say=said.append)
    assert info.name == TAG
    assert info.labels[BASE_LABEL] == "1"
    assert bases.base_digests(ARCH) == {TAG: info.labels[BASE_SHA_LABEL]}
    assert any("cannot be pulled" in line for line in said)
    assert ensure_base(runtime, PINNED, DEBIAN).name == TAG
    assert bootstraps == [("trixie", ARCH, None)]


def test_a_family_that_cannot_be_bootstrapped_keeps_the_pulls_error(bootstraps):
    with pytest.raises(ImageUnavailable) as caught:
        ensure_base(engine(), "docker.io/library/alpine:3.21", replace(DEBIAN, family="alpine"))
    assert caught.value.blame is Blame.NETWORK
    assert bootstraps == []


def test_offline_forbids_pull_and_bootstrap(bootstraps):
    runtime = engine()
    with pytest.raises(ImageUnavailable, match="--sandbox-offline") as caught:
        ensure_base(runtime, PINNED, DEBIAN, offline=True)
    assert caught.value.blame is Blame.HOST
    assert (runtime.pulls, bootstraps) == ([], [])


def test_pull_never_still_bootstraps(bootstraps):
    runtime = engine()
    assert ensure_base(runtime, PINNED, DEBIAN, pull="never").name == TAG
    assert runtime.pulls == []
    with pytest.raises(ImageUnavailable, match="pulling is forbidden"):
        ensure_base(runtime, "corp/base:1", DEBIAN, pull="never")


def test_an_engine_that_lost_the_base_gets_the_same_again(bootstraps):
    first = ensure_base(engine(), PINNED, DEBIAN)
    said = []
    again = ensure_base(engine(), PINNED, DEBIAN, offline=True, say=said.append)
    assert again.labels == first.labels
    assert said == [f"importing the bootstrapped base {TAG} again"]
    assert len(bootstraps) == 1


def test_a_base_of_a_lost_record_is_adopted(bootstraps, monkeypatch, tmp_path):
    runtime = engine()
    info = ensure_base(runtime, PINNED, DEBIAN)
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "another"))
    assert ensure_base(runtime, PINNED, DEBIAN) == info
    assert bases.base_digests(ARCH) == {TAG: info.labels[BASE_SHA_LABEL]}
    assert bases.find_base(PINNED, ARCH).suite == "trixie"
    assert len(bootstraps) == 1


def test_a_foreign_image_of_that_name_is_not_overwritten(bootstraps):
    runtime = engine(TAG)
    with pytest.raises(ImageUnavailable, match="not overwritten") as caught:
        ensure_base(runtime, PINNED, DEBIAN)
    assert f"docker rmi {TAG}" in caught.value.next_step
    with pytest.raises(ImageUnavailable, match="not overwritten"):
        bootstrap_base(runtime, PINNED, DEBIAN)
    assert bootstraps == []
    # Named without a digest it is what the user asked for.
    assert ensure_base(runtime, TAG, DEBIAN).labels == {}


def test_a_base_that_somebody_replaced_is_not_used_under_the_recorded_name(bootstraps):
    runtime = engine()
    ensure_base(runtime, PINNED, DEBIAN)
    runtime.pull = None
    runtime._add(TAG, ARCH)
    with pytest.raises(ImageUnavailable, match="not overwritten"):
        ensure_base(runtime, TAG, DEBIAN)


def test_the_bootstrapped_base_takes_the_digests_place_in_the_name(bootstraps):
    runtime, spec = engine(), spec_of()
    done = ensure_image(runtime, spec)
    recorded = bases.base_digests(ARCH)[TAG]
    expected = msgspec.structs.replace(spec, base=TAG, base_digest=f"sha256:{recorded}")
    assert done.info.name == image_name(expected) != image_name(spec)
    assert runtime.builds[0].dockerfile.startswith(f"FROM {TAG}\n")
    bootstrap_base(runtime, PINNED, DEBIAN)
    assert ensure_image(runtime, spec).info.name != done.info.name


def test_another_architecture_has_a_name_of_its_own(bootstraps):
    runtime = engine()
    target = replace(DEBIAN, arch=OTHER)
    ensure_base(runtime, PINNED, DEBIAN)
    info = ensure_base(runtime, PINNED, target)
    assert info.name == base_name(PINNED, OTHER) == f"{TAG}-{OTHER}"
    ensure_image(runtime, spec_of(target=target))
    assert runtime.builds[0].dockerfile.startswith(f"FROM {TAG}-{OTHER}\n")
    assert ensure_base(runtime, PINNED, DEBIAN).name == TAG


def test_a_plain_spec_is_its_base(bootstraps):
    runtime = engine(PINNED)
    done = ensure_image(runtime, spec_of(commands=(), packages={}))
    assert (done.info.name, done.hit, runtime.builds) == (PINNED, True, [])


def test_a_second_time_is_a_hit():
    runtime, spec = engine(PINNED), spec_of()
    first = ensure_image(runtime, spec)
    second = ensure_image(runtime, spec)
    assert (first.hit, second.hit, len(runtime.builds)) == (False, True, 1)
    assert first.info.name == second.info.name == image_name(spec)


def test_old_foreign_or_wrong_images_are_built_anew():
    runtime, spec = engine(PINNED), spec_of()
    name = ensure_image(runtime, spec).info.name
    for wrong in (
        {"created": time.time() - 8 * 86400},
        {"arch": OTHER},
        {"labels": {HASH_LABEL: "0" * 64}},
    ):
        good = runtime._images[name]
        runtime._images[name] = replace(good, **wrong)
        assert ensure_image(runtime, spec).hit is False, wrong
        assert ensure_image(runtime, spec).hit is True
    runtime._images[name] = replace(runtime._images[name], created=time.time() - 8 * 86400)
    assert ensure_image(runtime, spec, max_age=9 * 86400).hit is True


def test_offline_takes_an_old_image_and_builds_nothing_from_the_network():
    runtime, spec = engine(PINNED), spec_of()
    with pytest.raises(ImageUnavailable, match="offline") as caught:
        ensure_image(runtime, spec, offline=True)
    assert caught.value.blame is Blame.HOST
    name = ensure_image(runtime, spec).info.name
    runtime._images[name] = replace(runtime._images[name], created=1.0)
    assert ensure_image(runtime, spec, offline=True).hit is True
    local = spec_of(packages={}, commands=("RUN groupadd docker",))
    assert ensure_image(runtime, local, offline=True).hit is False


def test_rebuild_is_once_a_run():
    runtime, spec = engine(PINNED), spec_of()
    ensure_image(runtime, spec)
    hits = [
        ensure_image(runtime, spec, rebuild=True, rebuild_token=run).hit
        for run in ("run-1", "run-1", "run-2", "run-2")
    ]
    assert hits == [False, True, False, True]
    assert ensure_image(runtime, spec, rebuild=True).hit is False


def test_threads_build_once():
    runtime, spec = engine(PINNED), spec_of()
    build = runtime.build

    def slow(request, say):
        time.sleep(0.2)
        return build(request, say)

    runtime.build = slow
    threads = [threading.Thread(target=ensure_image, args=(runtime, spec)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runtime.builds) == 1


def test_the_request_holds_proxies_certificates_and_labels():
    runtime = engine(PINNED)
    spec = spec_of(certificates=("-----BEGIN CERTIFICATE-----\n",))
    environ = {"HTTP_PROXY": "http://proxy:1", "SECRET": "x"}
    ensure_image(runtime, spec, environ=environ, build_network="host", build_timeout=5.0)
    request = runtime.builds[0]
    assert request.build_args == {"http_proxy": "http://proxy:1", "HTTP_PROXY": "http://proxy:1"}
    assert request.labels[HASH_LABEL] == image_hash(spec)
    assert sorted(request.files) == ["Dockerfile", "certificates/pytest-sandbox-00.crt"]
    assert (request.network, request.timeout) == ("host", 5.0)


@pytest.fixture
def served(tmp_path):
    """A folder of files, served on loopback."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def with_key(url, content):
    return spec_of(keys=(KeyFile(url, hashlib.sha256(content).hexdigest(), "repo.key"),))


def test_keys_are_fetched_by_the_host_and_checked(served):
    folder, url = served
    (folder / "good.asc").write_bytes(b"KEY")
    runtime = engine(PINNED)
    ensure_image(runtime, with_key(f"{url}/good.asc", b"KEY"))
    assert runtime.builds[0].files["keys/repo.key"] == b"KEY"
    (folder / "good.asc").write_bytes(b"EVIL")
    with pytest.raises(DownloadError) as caught:
        ensure_image(runtime, with_key(f"{url}/good.asc", b"OTHER"))
    assert caught.value.blame is Blame.UPSTREAM
    assert str(caught.value).startswith("image: upstream: repository key: ")
    big = b"x" * ((1 << 20) + 1)
    (folder / "big.asc").write_bytes(big)
    with pytest.raises(DownloadError):
        ensure_image(runtime, with_key(f"{url}/big.asc", big))
    with pytest.raises(DownloadError):
        ensure_image(runtime, with_key("http://example.invalid/key", b"KEY2"))
    assert len(runtime.builds) == 1


def test_prune_goes_by_last_use(tmp_path):
    runtime = engine(PINNED)
    old, used = spec_of(), spec_of(packages={"apt": ("git",)}, commands=("RUN git",))
    for spec in (old, used):
        info = ensure_image(runtime, spec).info
        runtime._images[info.name] = replace(info, created=time.time() - 6 * 86400)
        mark = bases.cache_dir() / "used" / info.name.replace("/", "_").replace(":", "_")
        os.utime(mark, (time.time() - 5 * 86400,) * 2)
    ensure_image(runtime, used)  # used today
    assert last_use(runtime.find_image(image_name(old))) < time.time() - 4 * 86400
    removed = prune(runtime, older_than=3 * 86400)
    assert [info.name for info in removed] == [image_name(old)]
    assert [info.name for info in cached_images(runtime)] == [image_name(used)]
    assert prune(runtime, older_than=3 * 86400) == []


def test_prune_all_takes_the_bases_too(bootstraps):
    runtime = engine("somebody/else:1")
    ensure_image(runtime, spec_of())
    assert len(imported_bases(runtime)) == 1
    removed = prune(runtime, everything=True)
    assert TAG in {info.name for info in removed}
    assert bases.recorded_bases() == []
    assert list((bases.cache_dir() / "bases").glob("*.zst")) == []
    assert runtime.find_image("somebody/else:1") is not None
