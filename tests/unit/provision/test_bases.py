from __future__ import annotations

import hashlib
import multiprocessing

import pytest

from pytest_sandbox.provision import bases
from pytest_sandbox.provision.bases import (
    base_digests,
    cache_dir,
    data_dir,
    find_base,
    forget_base,
    open_tar,
    record_base,
    recorded_bases,
)
from pytest_sandbox.provision.bootstrap import BootstrappedBase

PINNED = "docker.io/library/debian:trixie-slim@sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))


def made(tmp_path, content=b"tar", arch="amd64"):
    path = tmp_path / f"{arch}.tar"
    path.write_bytes(content)
    return BootstrappedBase(path, hashlib.sha256(content).hexdigest(), len(content), "trixie", arch)


def test_a_base_is_recorded_without_its_digest_and_by_architecture(tmp_path):
    amd64 = record_base(PINNED, made(tmp_path, b"one"))
    arm64 = record_base(PINNED, made(tmp_path, b"two", "arm64"))
    plain = "docker.io/library/debian:trixie-slim"
    assert base_digests("amd64") == {plain: amd64.sha256}
    assert base_digests("arm64") == {plain: arm64.sha256}
    assert find_base(PINNED, "amd64") == find_base(plain, "amd64") == amd64
    assert find_base("docker.io/library/debian:bookworm", "amd64") is None


def test_a_new_bootstrap_takes_the_place_of_the_old(tmp_path):
    record_base(PINNED, made(tmp_path, b"one"))
    new = record_base(PINNED, made(tmp_path, b"two"))
    assert [base.sha256 for base in recorded_bases()] == [new.sha256]
    assert len(bases.kept_tars()) == 1


def test_the_tar_is_kept_and_checked(tmp_path):
    base = record_base(PINNED, made(tmp_path, b"content" * 1000))
    with open_tar(base) as stream:
        assert stream is not None
        assert stream.read() == b"content" * 1000
    kept = next((cache_dir() / "bases").glob("*.zst"))
    kept.write_bytes(kept.read_bytes()[:-3])
    with open_tar(base) as stream:
        assert stream is None
    assert not kept.exists()


def test_a_forgotten_base_is_gone(tmp_path):
    record_base(PINNED, made(tmp_path))
    forget_base(PINNED, "amd64")
    assert recorded_bases() == []


def test_a_damaged_record_counts_as_empty(tmp_path):
    data_dir().mkdir(parents=True)
    (data_dir() / "bases.json").write_text("{")
    assert recorded_bases() == []
    record_base(PINNED, made(tmp_path))
    assert len(recorded_bases()) == 1


def _record(args):
    folder, index = args
    path = folder / f"{index}.tar"
    path.write_bytes(str(index).encode())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    record_base(
        f"example/base:{index}", BootstrappedBase(path, sha, path.stat().st_size, "trixie", "amd64")
    )


def test_processes_do_not_lose_each_others_bases(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(_record, [(tmp_path, index) for index in range(12)])
    assert len(recorded_bases()) == 12
