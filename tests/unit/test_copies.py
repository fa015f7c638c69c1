"""`cp -a` into and out of a sandbox, as tar streams."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_sandbox.archives import BOUNDS, pack, unpack_to_host
from pytest_sandbox.errors import Blame, StepFailed, UsageError
from tests.unit.test_archives import folder, hard, link, member, tar_bytes


@pytest.fixture
def tree(tmp_path):
    """A folder with everything that `cp -a` keeps."""
    root = tmp_path / "tree"
    (root / "sub/empty").mkdir(parents=True)
    (root / "run").write_bytes(b"#!/bin/sh\n")
    (root / "run").chmod(0o750)
    (root / "sub/absolute").symlink_to("/etc/passwd")
    (root / "sub/dangling").symlink_to("../nowhere/größe")
    (root / "sub/twin").hardlink_to(root / "run")
    (root / b"bytes-\xff".decode(errors="surrogateescape")).write_bytes(bytes(100_000))
    (root / "sub").chmod(0o555)
    for path in (root / "run", root / "sub/empty", root / "sub", root):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    yield root
    (root / "sub").chmod(0o755)


def listing(root):
    """What `cp -a` keeps of a tree."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[path.relative_to(root)] = (oct(status.st_mode), status.st_mtime_ns, what)
    return found


def packed(source, name):
    out = io.BytesIO()
    report = pack(source, name, out)
    out.seek(0)
    return out, report


def test_there_and_back_again_is_the_same(tree, tmp_path):
    stream, report = packed(tree, "there")
    assert report.entries == 8
    assert unpack_to_host(stream, tmp_path / "new", "there") == tmp_path / "new"
    assert listing(tmp_path / "new") == listing(tree)
    twin, run = tmp_path / "new/sub/twin", tmp_path / "new/run"
    assert twin.stat().st_ino == run.stat().st_ino
    (tmp_path / "new/sub").chmod(0o755)


def test_gnu_tar_reads_what_is_packed(tree, tmp_path):
    stream, _ = packed(tree, "a/b")
    (tmp_path / "out").mkdir()
    argv = ["tar", "-xp", "-C", tmp_path / "out"]
    subprocess.run(argv, input=stream.getvalue(), check=True)
    assert listing(tmp_path / "out/a/b") == listing(tree)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        assert {(info.uid, info.gid, info.uname) for info in tar} == {(0, 0, "")}
    (tmp_path / "out/a/b/sub").chmod(0o755)


def test_what_gnu_tar_writes_is_unpacked(tree, tmp_path):
    argv = ["tar", "-c", "--format=pax", "-C", tmp_path, "tree"]
    stream = io.BytesIO(subprocess.run(argv, check=True, capture_output=True).stdout)
    unpack_to_host(stream, tmp_path / "new", "tree")
    assert listing(tmp_path / "new") == listing(tree)
    (tmp_path / "new/sub").chmod(0o755)


def test_single_files_and_symlinks(tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to("/etc")
    stream, _ = packed(tmp_path / "file", "f")
    assert unpack_to_host(stream, tmp_path / "g", "f").read_text() == "1"
    stream, _ = packed(tmp_path / "link", "l")
    assert unpack_to_host(stream, tmp_path / "m", "l").readlink() == Path("/etc")


def test_an_existing_folder_takes_the_copy_under_its_name(tree, tmp_path):
    (tmp_path / "box").mkdir()
    for _ in range(2):  # the second time it is merged into what is there
        stream, _ = packed(tree, "there")
        assert unpack_to_host(stream, tmp_path / "box", "there") == tmp_path / "box/there"
        assert listing(tmp_path / "box/there") == listing(tree)
        (tmp_path / "box/there/sub").chmod(0o755)
    (tmp_path / "box/there/mine").write_text("stays")
    stream, _ = packed(tree, "there")
    unpack_to_host(stream, tmp_path / "box", "there")
    assert (tmp_path / "box/there/mine").read_text() == "stays"
    (tmp_path / "box/there/sub").chmod(0o755)
    assert [path.name for path in (tmp_path / "box").iterdir()] == ["there"]


def test_an_existing_file_is_replaced_and_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "there").symlink_to("precious")
    unpack_to_host(io.BytesIO(tar_bytes(member("a", b"new"))), tmp_path / "there", "a")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "there").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"new"


def test_files_and_folders_do_not_change_places(tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "box/a").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        unpack_to_host(io.BytesIO(tar_bytes(folder("a"))), tmp_path / "file", "a")
    with pytest.raises(FileExistsError):
        unpack_to_host(io.BytesIO(tar_bytes(member("a", b"1"))), tmp_path / "box", "a")
    (tmp_path / "box/l").symlink_to("a")
    with pytest.raises(FileExistsError):
        unpack_to_host(io.BytesIO(tar_bytes(folder("l"), member("l/x"))), tmp_path / "box", "l")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "box", "file", "l"]


def test_missing_things_are_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        pack(tmp_path / "gone", "gone", io.BytesIO())
    stream = io.BytesIO(tar_bytes(member("a", b"1")))
    with pytest.raises(FileNotFoundError, match="no/where"):
        unpack_to_host(stream, tmp_path / "no/where/a", "a")
    with pytest.raises(FileNotFoundError):
        unpack_to_host(io.BytesIO(tar_bytes()), tmp_path / "a", "a")


def test_sockets_and_fifos_are_not_packed(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="fifo is a socket"):
        pack(tmp_path, "x", io.BytesIO())
    (tmp_path / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(UsageError, match="is a socket"):
            pack(tmp_path, "x", io.BytesIO())


def test_setuid_and_setgid_stay_in_the_sandbox(tmp_path):
    stream = tar_bytes(folder("a", mode=0o3777), member("a/su", b"", mode=0o6755))
    unpack_to_host(io.BytesIO(stream), tmp_path / "a", "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "a/su").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ((member("a/../../x", b"1"),), "climbs"),
        ((member("/a/x", b"1"),), "absolute"),
        ((member("b/x", b"1"),), "does not belong"),
        ((link("a/d", "/tmp"), member("a/d/x", b"1")), "lies below"),
        ((link("a", ".."), member("a/x", b"1")), "lies below"),
        ((link("a/d", "."), folder("a/d")), "a symlink first"),
        ((member("a/x", b"1"), member("a/x", b"2")), "comes twice"),
        ((link("a/x", "/etc/passwd"), member("a/x", b"2")), "a symlink first"),
        ((link("a/l", "/etc/passwd"), hard("a/x", "a/l")), "no regular file"),
        ((hard("a/x", "/etc/passwd"),), "absolute"),
        ((hard("a/x", "../../etc/passwd"),), "climbs"),
        ((hard("a/x", "etc/passwd"),), "no regular file"),
        ((member("a/dev", kind=tarfile.CHRTYPE),), "a device"),
        ((member("a/fifo", kind=tarfile.FIFOTYPE),), "a FIFO"),
        ((link("a/l", ""),), "impossible target"),
        ((member("a/x", bytes(9000)),), "more than 5000 bytes"),
    ],
)
def test_streams_that_cheat_leave_nothing(tmp_path, members, text):
    bounds = replace(BOUNDS, total=5000)
    with pytest.raises(StepFailed, match=text) as info:
        unpack_to_host(io.BytesIO(tar_bytes(*members)), tmp_path / "out", "a", bounds=bounds)
    assert info.value.blame is Blame.RECIPE
    assert list(tmp_path.iterdir()) == []


def test_a_cut_stream_leaves_nothing(tmp_path):
    stream = tar_bytes(member("a/x", bytes(5000)))[:3000]
    with pytest.raises(StepFailed, match="ends within"):
        unpack_to_host(io.BytesIO(stream), tmp_path / "out", "a")
    assert list(tmp_path.iterdir()) == []
