from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import random
import threading
import tracemalloc

import pytest
import zstandard

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, MIB
from pytest_sandbox.oci.layers.decompress import BLOCK, Unpacked, is_zstd
from tests.unit.oci.layers.archives import descriptor_of

TEXT = b"".join(b"line %d\n" % number for number in range(100_000))
NOISE = random.Random(1).randbytes(300_000)


def unpacked(data, bounds=DEFAULT_BOUNDS):
    stream = data if isinstance(data, int) else descriptor_of(data)
    source = Unpacked(stream, bounds, name="layer 1")
    blocks = []
    try:
        while block := source.take():
            assert len(block) <= BLOCK
            blocks.append(block)
        assert source.take() == b""
    finally:
        source.close()
        os.close(stream)
    return b"".join(blocks), source


def skippable(data):
    return b"\x5f\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def zstd(data, **more):
    return zstandard.ZstdCompressor(**more).compress(data)


PACKED = {
    "plain": TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip, stored": gzip.compress(TEXT, 0),
    "gzip, a member for each part": b"".join(
        gzip.compress(TEXT[at : at + 9999]) for at in range(0, len(TEXT), 9999)
    ),
    "gzip, empty members": gzip.compress(b"") + gzip.compress(TEXT) + gzip.compress(b""),
    "gzip, padded as on tapes": gzip.compress(TEXT) + bytes(10240),
    "zstd": zstd(TEXT, write_checksum=True),
    "zstd, frames": zstd(TEXT[:5]) + zstd(b"") + zstd(TEXT[5:]),
    "zstd, skippable frames": skippable(b"x" * 99) + zstd(TEXT) + skippable(b"end"),
}


@pytest.mark.parametrize("data", PACKED.values(), ids=PACKED.keys())
def test_every_packing_is_known_by_its_first_bytes(data):
    found, source = unpacked(data)
    assert found == TEXT
    assert source.digest == "sha256:" + hashlib.sha256(TEXT).hexdigest()
    assert (source.size, source.packed) == (len(TEXT), len(data))


@pytest.mark.parametrize("kind", ["plain", "gzip, a member for each part", "zstd, frames"])
def test_a_pipe_that_gives_little_at_a_time(kind):
    reading, writing = os.pipe()
    data = PACKED[kind]

    def write():
        for at in range(64):
            os.write(writing, data[at : at + 1])
        for at in range(64, len(data), 4099):
            os.write(writing, data[at : at + 4099])
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    assert unpacked(reading)[0] == TEXT
    thread.join()


def test_nothing_at_all():
    assert unpacked(b"")[0] == b""
    assert unpacked(b"\x1f")[0] == b"\x1f"


def broken_gzip():
    data = bytearray(gzip.compress(NOISE))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def wrong_sum(at):
    data = bytearray(gzip.compress(TEXT))
    data[at] ^= 1
    return bytes(data)


def broken_zstd():
    data = bytearray(zstd(NOISE, write_checksum=True))
    data[-1] ^= 1
    return bytes(data)


WIDE = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)


def wide_window():
    writer = zstandard.ZstdCompressor(compression_params=WIDE).compressobj()
    return writer.compress(TEXT) + writer.flush()


REFUSED = {
    "gzip: content": (broken_gzip, "gzip stream is broken"),
    "gzip: checksum": (lambda: wrong_sum(-8), "gzip stream is broken"),
    "gzip: length": (lambda: wrong_sum(-1), "gzip stream is broken"),
    "gzip: cut": (lambda: gzip.compress(NOISE)[:-100], "ends too early"),
    "gzip: cut in the trailer": (lambda: gzip.compress(TEXT)[:-3], "ends too early"),
    "gzip: cut in the header": (lambda: gzip.compress(TEXT)[:7], "ends too early"),
    "gzip: something behind": (lambda: gzip.compress(TEXT) + b"more", "something behind"),
    "gzip: one byte behind": (lambda: gzip.compress(TEXT) + b"m", "something behind"),
    "gzip: cut second member": (
        lambda: gzip.compress(b"a") + gzip.compress(NOISE)[:99], "ends too early",
    ),
    "gzip: thousands of nothing": (lambda: gzip.compress(b"") * 2000, "too many empty members"),
    "zstd: checksum": (broken_zstd, "zstd stream is broken"),
    "zstd: something behind": (lambda: zstd(TEXT) + b"garbage", "zstd stream is broken"),
    "zstd: window of 256 MiB": (wide_window, "window of more than 134217728 bytes"),
    "xz": (lambda: lzma.compress(TEXT), "packed with xz"),
    "bzip2": (lambda: bz2.compress(TEXT), "packed with bzip2"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_broken_is_refused(make, rule):
    with pytest.raises(InvalidImage) as caught:
        unpacked(make())
    assert caught.value.what.startswith("layer 1: ")
    assert rule in caught.value.what


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_bombs_end_at_the_ratio_and_need_no_memory(pack):
    bounds = DEFAULT_BOUNDS._replace(ratio_floor=4 * MIB)
    bomb = pack(bytes(64 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage, match="more than 200 times its size"):
            unpacked(bomb, bounds)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def test_a_small_bomb_is_below_the_floor():
    assert len(unpacked(gzip.compress(bytes(8 * MIB)))[0]) == 8 * MIB


def test_the_bound_of_a_layer():
    bounds = DEFAULT_BOUNDS._replace(layer_bytes=1000)
    assert unpacked(b"x" * 1000, bounds)[0]
    with pytest.raises(InvalidImage, match="unpacks to more than 1000 bytes"):
        unpacked(b"x" * 1001, bounds)


def test_closing_early_ends_the_thread():
    stream = descriptor_of(gzip.compress(NOISE * 40))
    source = Unpacked(stream, DEFAULT_BOUNDS)
    assert source.take()
    source.close()
    source._thread.join(10)
    assert not source._thread.is_alive()
    os.close(stream)


def test_frames_of_zstd():
    assert is_zstd(zstd(b"")[:4])
    assert is_zstd(skippable(b""))
    assert not is_zstd(b"\x4f\x2a\x4d\x18")
    assert not is_zstd(b"")
