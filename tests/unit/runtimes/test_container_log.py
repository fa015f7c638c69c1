"""The log of a detached sandbox: order, streams, bounds, following."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pytest_sandbox.cli.logs import last_lines
from pytest_sandbox.runtimes.oci.containers import log


class Call:
    """What the job `keep` uses of a Call."""

    def __init__(self, folder, fds, streams, largest):
        self.args = {"folder": str(folder), "streams": streams, "largest": largest}
        self.fds = fds
        self.said = []

    def send(self, message):
        self.said.append(message)


class Keeper:
    """The job in a thread, with the writing ends of its pipes."""

    def __init__(self, folder, streams=2, largest=log.LARGEST):
        log.prepare(folder)
        pipes = [os.pipe() for _ in range(streams)]
        self.ends = {number: pipe[1] for number, pipe in enumerate(pipes, 1)}
        self.call = Call(folder, [pipe[0] for pipe in pipes], streams, largest)
        self.thread = threading.Thread(target=log.keep, args=(self.call,))
        self.thread.start()

    def write(self, stream, data):
        os.write(self.ends[stream], data)

    def close(self):
        while self.ends:
            os.close(self.ends.popitem()[1])
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def keeper(tmp_path):
    begun = []

    def begin(**options):
        begun.append(Keeper(tmp_path, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def content(entries, stream):
    return b"".join(entry.data for entry in entries if entry.stream == stream)


def test_streams_stay_apart(tmp_path, keeper):
    kept = keeper()
    for number in range(100):
        kept.write(1, b"out %d\n" % number)
        kept.write(2, b"err \xff\x00%d\n" % number)
    kept.close()
    assert kept.call.said == [{"ready": True}]
    entries = list(log.read(tmp_path))
    assert content(entries, 1) == b"".join(b"out %d\n" % n for n in range(100))
    assert content(entries, 2) == b"".join(b"err \xff\x00%d\n" % n for n in range(100))
    assert all(abs(entry.time - time.time()) < 60 for entry in entries)


def test_an_empty_log(tmp_path, keeper):
    keeper().close()
    assert list(log.read(tmp_path)) == []


def test_it_is_bounded_and_says_what_is_gone(tmp_path, keeper):
    kept = keeper(streams=1, largest=100_000)
    block = b"x" * 4095 + b"\n"
    for _ in range(200):
        kept.write(1, block)
    kept.close()
    sizes = [(tmp_path / name).stat().st_size for name in (log.LOG, log.OLDER)]
    assert max(sizes) <= 170_000  # a piece of 64 KiB may come on top
    entries = list(log.read(tmp_path))
    assert entries[0].stream == 0
    dropped = int(entries[0].data)
    assert [entry.stream for entry in entries[1:]] == [1] * (len(entries) - 1)
    assert dropped + len(content(entries, 1)) == 200 * len(block)
    assert len(content(entries, 1)) >= 100_000


@pytest.mark.parametrize("largest", [log.LARGEST, 50_000])
def test_following(tmp_path, keeper, largest):
    """The reader sees everything, also across files, and ends when it is told so."""
    kept = keeper(streams=1, largest=largest)
    over = threading.Event()
    found = []

    def follow():
        found.extend(log.read(tmp_path, follow=True, over=over.is_set))

    reader = threading.Thread(target=follow)
    reader.start()
    for number in range(60):
        kept.write(1, b"%d " % number + b"y" * 3000 + b"\n")
        time.sleep(0.005)
    kept.write(1, b"end")
    kept.close()
    over.set()
    reader.join(20)
    assert not reader.is_alive()
    data = content(found, 1)
    assert data.endswith(b"end")
    assert data.count(b"\n") == 60


def test_a_torn_frame_is_left_out(tmp_path, keeper):
    kept = keeper(streams=1)
    kept.write(1, b"whole")
    kept.close()
    with (tmp_path / log.LOG).open("ab") as file:
        file.write(b"\x01" + b"\0" * 8 + (100).to_bytes(4, "little") + b"torn")
    assert content(log.read(tmp_path), 1) == b"whole"


ENTRIES = [(1, b"a\nb"), (2, b"x"), (1, b"c\nd\n"), (2, b"y\nz"), (1, b"e"), (1, b"f\n")]
"""Lines: a, bc, d, xy, ef; and z, which has no end yet."""


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, []),
        (1, [(1, b"e"), (1, b"f\n")]),
        (2, [(2, b"z"), (1, b"e"), (1, b"f\n")]),
        (3, [(2, b"x"), (2, b"y\nz"), (1, b"e"), (1, b"f\n")]),
        (4, [(2, b"x"), (1, b"d\n"), (2, b"y\nz"), (1, b"e"), (1, b"f\n")]),
        (5, [(1, b"b"), (2, b"x"), (1, b"c\nd\n"), (2, b"y\nz"), (1, b"e"), (1, b"f\n")]),
        (6, ENTRIES),
        (99, ENTRIES),
    ],
)
def test_the_last_lines_are_lines_and_not_pieces(count, shown):
    entries = [log.Entry(stream, 1.0, data) for stream, data in ENTRIES]
    found = [(entry.stream, entry.data) for entry in last_lines(entries, count)]
    assert found == shown
