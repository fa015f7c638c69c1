"""Capturing with caps, and taking apart an engine's stream."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.runtimes import streams
from pytest_sandbox.runtimes.base import HEAD, TAIL
from pytest_sandbox.runtimes.streams import Capture, Demultiplexer, LogFile, TailBuffer

if TYPE_CHECKING:
    from pathlib import Path


def test_small_output_is_whole():
    capture = Capture()
    for part in (b"one ", b"", b"two"):
        capture.feed(part)
    assert capture.value() == b"one two"
    assert (capture.total, capture.truncated) == (7, False)


@pytest.mark.parametrize("size", [1, 1000, 65536, HEAD, HEAD + 1, 5 * HEAD])
def test_head_and_tail_are_kept(size: int):
    data = random.Random(1).randbytes(5 * HEAD + 17)
    capture = Capture()
    if size == 1:
        capture.feed(data[: 3 * HEAD])
        data, size = data[: 3 * HEAD] + data[:99], 1
        for index in range(99):
            capture.feed(data[3 * HEAD + index : 3 * HEAD + index + 1])
    else:
        for start in range(0, len(data), size):
            capture.feed(data[start : start + size])
    value = capture.value()
    dropped = len(data) - HEAD - TAIL
    assert capture.total == len(data)
    assert capture.truncated
    assert value == data[:HEAD] + streams.MARK % dropped + data[-TAIL:]


def test_exactly_the_caps_is_whole():
    data = random.Random(2).randbytes(HEAD + TAIL)
    capture = Capture()
    for start in range(0, len(data), 10007):
        capture.feed(data[start : start + 10007])
    assert capture.value() == data
    assert not capture.truncated


def test_clear():
    capture = Capture()
    capture.feed(b"x" * 3 * HEAD)
    capture.clear()
    capture.feed(b"new")
    assert (capture.value(), capture.total) == (b"new", 3)


def test_log_file_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "LOG_LIMIT", 10)
    log = LogFile(tmp_path / "a" / "log")
    capture = Capture(log)
    capture.feed(b"123456")
    capture.feed(b"789012345")
    assert log.close() == tmp_path / "a" / "log"
    assert (tmp_path / "a" / "log").read_bytes() == b"1234567890"
    assert capture.value() == b"123456789012345"


def test_log_file_that_cannot_be_written_is_none(tmp_path: Path):
    (tmp_path / "file").write_text("")
    log = LogFile(tmp_path / "file" / "log")
    log.write(b"x")
    assert log.close() is None
    assert LogFile(None).close() is None


def test_tail_buffer():
    buffer = TailBuffer(10)
    for index in range(100):
        buffer.feed(b"%d," % index)
    assert buffer.value() == b",97,98,99,"


@pytest.mark.parametrize("size", [1, 3, 8, 9, 1000])
def test_frames_in_any_pieces(size: int):
    frames = [(1, b"out"), (2, b""), (2, b"error" * 50), (1, b"\x01\x00\x00")]
    data = b"".join(bytes([s, 0, 0, 0]) + len(p).to_bytes(4, "big") + p for s, p in frames)
    demultiplexer = Demultiplexer()
    seen = {1: b"", 2: b""}
    for start in range(0, len(data), size):
        for stream, payload in demultiplexer.feed(data[start : start + size]):
            seen[stream] += payload
    assert seen == {1: b"out\x01\x00\x00", 2: b"error" * 50}
