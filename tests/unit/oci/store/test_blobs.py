"""Blobs are held to digest and size when written and when read."""

from __future__ import annotations

import hashlib
import os

import pytest

from pytest_sandbox.errors import ImageUnavailable, InvalidImage
from pytest_sandbox.oci.descriptors import OCI_LAYER, Descriptor
from pytest_sandbox.oci.store.blobs import Blobs
from tests.oci.store.seeing import listing

DATA = b"some bytes" * 1000


def descriptor(data: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def blobs(tmp_path):
    (tmp_path / "blobs").mkdir()
    return Blobs(tmp_path / "blobs")


def test_a_written_blob_is_published_by_rename(blobs, tmp_path):
    wanted = descriptor(DATA)
    writer = blobs.writer(tmp_path, wanted)
    writer.write(DATA[:5])
    writer.write(memoryview(DATA)[5:])
    assert not blobs.has(wanted.digest)
    writer.check()
    writer.publish()
    writer.close()
    assert blobs.read(wanted.digest) == DATA
    assert blobs.all() == [wanted.digest]
    assert listing(tmp_path) == ["blobs"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [(DATA[:-1], "9999 bytes, not 10000"), (b"x" + DATA[1:], "has the digest sha256:")],
)
def test_wrong_bytes_are_never_published(blobs, tmp_path, data, problem):
    writer = blobs.writer(tmp_path, descriptor(DATA))
    writer.write(data)
    with pytest.raises(InvalidImage, match=problem):
        writer.check()
    writer.close()
    assert blobs.all() == []
    assert listing(tmp_path) == ["blobs"]


def test_too_many_bytes_are_refused_at_once(blobs, tmp_path):
    writer = blobs.writer(tmp_path, descriptor(DATA))
    with pytest.raises(InvalidImage, match="more than 10000"):
        writer.write(DATA + b"x")
    assert os.fstat(writer.descriptor).st_size == 0
    writer.close()


def test_a_damaged_blob_is_found_on_reading_and_removed(blobs):
    digest = blobs.put(DATA)
    blobs.path(digest).chmod(0o600)
    blobs.path(digest).write_bytes(b"X" + DATA[1:])
    with pytest.raises(InvalidImage, match="has the content of"):
        blobs.check(digest)
    with pytest.raises(InvalidImage, match="damaged"):
        blobs.read(digest)
    assert not blobs.has(digest)
    digest = blobs.put(DATA)
    blobs.path(digest).chmod(0o600)
    blobs.path(digest).write_bytes(DATA + b"X")
    with pytest.raises(InvalidImage, match="damaged"):
        list(blobs.blocks(digest))


def test_missing_blobs_are_told(blobs):
    with pytest.raises(ImageUnavailable, match="not in the store"):
        blobs.read("sha256:" + "0" * 64)
    with pytest.raises(InvalidImage, match="no digest"):
        blobs.path("../../etc/passwd")
