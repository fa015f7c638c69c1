from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import zlib

import pytest
import zstandard

from pytest_sandbox.errors import SandboxError, UsageError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.layers.diff import write_layer
from pytest_sandbox.oci.layers.members import Member
from pytest_sandbox.oci.layers.pack import Packer
from pytest_sandbox.oci.layers.writer import END, header
from tests.unit.oci.layers.archives import (
    apply,
    file,
    folder,
    hardlink,
    listing,
    members,
    pax,
    symlink,
)


def layer_of(root, *, overlay=False, pack="", bounds=DEFAULT_BOUNDS):
    """(what was told, the written bytes)."""
    tree = os.open(root, os.O_RDONLY)
    with tempfile.TemporaryFile() as out:
        packer = Packer(out.fileno(), pack)
        try:
            write_layer(tree, packer, bounds, overlay=overlay)
            told = packer.finish()
        finally:
            packer.close()
            os.close(tree)
        out.seek(0)
        return told, out.read()


@pytest.fixture
def root(tmp_path):
    long = "ä" * 60 + "/" + "n" * 200
    data = folder(b"b", 0o1750, mtime=1) + file(b"b/two", b"x" * 700, mode=0o4755, mtime=2)
    data += hardlink(b"a-link", b"b/two") + symlink(b"c", "größe".encode(), mtime=3)
    data += pax((b"mtime", b"5.000000001"), (b"SCHILY.xattr.user.a", b"\0=\n")) + file(b"d")
    data += pax((b"path", long.encode())) + file(b"long", b"long") + file(b"nul\xff", b"", mtime=9)
    apply(tmp_path / "root", data, first=True)
    return tmp_path / "root"


def seen(root):
    found = {}
    for path in listing(root):
        status = (root / path).lstat()
        found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_size,
                       status.st_mtime_ns, status.st_nlink)  # fmt: skip
    return found


def test_a_tree_becomes_the_same_tree_again_and_the_same_bytes(root, tmp_path):
    told, data = layer_of(root)
    assert told == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)) * 2
    apply(tmp_path / "again", data, end=False)
    before = seen(root)
    before["ä" * 60 + "/"] = seen(tmp_path / "again")["ä" * 60 + "/"]
    assert seen(tmp_path / "again") == before
    assert os.getxattr(tmp_path / "again/d", "user.a") == b"\0=\n"
    assert (tmp_path / "again/a-link").samefile(tmp_path / "again/b/two")
    assert layer_of(tmp_path / "again")[1] == data


def test_members_come_in_the_order_of_their_bytes(root):
    found = [member.name for member, _ in members(layer_of(root)[1])]
    long = ("ä" * 60).encode()
    assert found == [
        b"./", b"a-link", b"b/", b"b/two", b"c", b"d", b"nul\xff", long + b"/",
        long + b"/" + b"n" * 200,
    ]  # fmt: skip


def test_others_can_read_it(root, tmp_path):
    (tmp_path / "layer.tar").write_bytes(layer_of(root)[1])
    with tarfile.open(tmp_path / "layer.tar") as archive:
        found = {member.name: member for member in archive}
    assert found["b/two"].linkname == "a-link"
    assert (found["a-link"].mode, found["a-link"].size) == (0o4755, 700)
    assert found["d"].pax_headers["mtime"] == "5.000000001"
    assert "ä" * 60 + "/" + "n" * 200 in found
    if shutil.which("tar"):
        (tmp_path / "out").mkdir()
        command = ["tar", "-C", tmp_path / "out", "--xattrs", "-xpf", tmp_path / "layer.tar"]
        subprocess.run(command, check=True)
        assert listing(tmp_path / "out") == listing(root)


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
def test_packed_it_is_the_same_layer(root, tmp_path, pack):
    plain, data = layer_of(root)
    told, packed = layer_of(root, pack=pack)
    assert (told.diff_id, told.size) == (plain.diff_id, plain.size)
    assert told.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
    assert told.packed == len(packed) < len(data)
    open_it = {"gzip": lambda b: zlib.decompress(b, 31), "zstd": unpack_zstd}
    assert open_it[pack](packed) == data
    assert layer_of(root, pack=pack)[1] == packed
    assert apply(tmp_path / "again", packed, end=False).diff_id == plain.diff_id


def unpack_zstd(data):
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def test_an_unknown_packing_is_refused(root):
    with pytest.raises(UsageError, match="'lzma'"):
        layer_of(root, pack="lzma")


def test_holes_are_written_as_zeros(tmp_path):
    (tmp_path / "root").mkdir()
    with (tmp_path / "root/sparse").open("wb") as out:
        out.truncate(3 << 20)
    _, data = layer_of(tmp_path / "root")
    assert members(data)[1][1] == bytes(3 << 20)


def test_sockets_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        tree = os.open(tmp_path, os.O_RDONLY)
        with tempfile.TemporaryFile() as out:
            packer = Packer(out.fileno())
            assert write_layer(tree, packer, DEFAULT_BOUNDS, overlay=False) == 1
            packer.finish()
        os.close(tree)


def test_marks_of_an_overlay_become_marks_of_layers(tmp_path):
    root = tmp_path / "upper"
    apply(root, folder(b"d") + file(b"d/new", b"n") + folder(b"e"), first=True)
    try:
        os.mknod(root / "d/gone", 0o020000, 0)
    except PermissionError:
        pytest.skip("no whiteouts without privileges")
    os.setxattr(root / "e", "user.overlay.opaque", b"y")
    os.setxattr(root / "d", "user.overlay.origin", b"\0")
    os.setxattr(root / "d", "user.overlay.impure", b"y")
    _, data = layer_of(root, overlay=True)
    found = [(member.name, member.xattrs) for member, _ in members(data)]
    assert found == [
        (b"./", {}), (b"d/", {}), (b"d/.wh.gone", {}), (b"d/new", {}),
        (b"e/", {}), (b"e/.wh..wh..opq", {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mark", "value"),
    [("redirect", b"/d"), ("metacopy", b""), ("whiteouts", b"y"), ("opaque", b"x")],
)
@pytest.mark.parametrize("name", ["d", "d/f"])
def test_marks_that_no_layer_can_say_are_refused(tmp_path, mark, value, name):
    root = tmp_path / "upper"
    apply(root, folder(b"d") + file(b"d/f", b"n"))
    os.setxattr(root / name, f"user.overlay.{mark}", value)
    with pytest.raises(SandboxError) as caught:
        layer_of(root, overlay=True)
    assert caught.value.what.startswith(f"'/{name}' cannot become part of a layer")
    assert mark in caught.value.what


def test_names_that_are_marks_are_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / ".wh.x").touch()
    with pytest.raises(SandboxError, match=r"begins with \.wh\."):
        layer_of(root)


@pytest.mark.parametrize(
    ("bounds", "rule"),
    [(Bounds(entries=3), "more than 3 files"), (Bounds(layer_bytes=5000), "over 5000 bytes")],
)
def test_bounds(tmp_path, bounds, rule):
    apply(tmp_path / "root", b"".join(file(b"%d" % n, b"x" * 3000) for n in range(3)))
    with pytest.raises(SandboxError, match=rule):
        layer_of(tmp_path / "root", bounds=bounds)


def test_a_full_disk_is_said(root):
    tree = os.open(root, os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY)
    packer = Packer(full)
    try:
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - either may say it
            write_layer(tree, packer, DEFAULT_BOUNDS, overlay=False)
            packer.finish()
    finally:
        packer.close()
        os.close(full)
        os.close(tree)


EXTREMES = {
    "times before 1970": Member(b"a", b"0", mtime=-1_500_000_000),
    "far times": Member(b"a", b"0", mtime=1 << 61),
    "large ids": Member(b"a", b"0", uid=1 << 31, gid=0o7777777 + 1),
    "large sizes": Member(b"a", b"1", size=0),
    "a name of exactly a hundred": Member(b"n" * 100, b"0"),
    "a longer name": Member(b"n" * 101, b"0"),
    "a long folder": Member(b"n" * 150 + b"/", b"5"),
    "a long target": Member(b"a", b"2", link=b"t" * 101),
    "bytes that are no text": Member(b"\xff\x01", b"2", link=b"\xfe"),
    "a record whose length grows by a digit": Member(b"a", b"0", xattrs={"user.x": b"y" * 71}),
    "a record of a thousand": Member(b"a", b"0", xattrs={"user.x": b"\n" * 970}),
}


@pytest.mark.parametrize("member", EXTREMES.values(), ids=EXTREMES.keys())
def test_what_is_written_is_read_again(member):
    [(found, _)] = members(header(member) + END)
    for name in ("name", "link", "kind", "mode", "uid", "gid", "size", "mtime", "xattrs"):
        assert getattr(found, name) == getattr(member, name)


@pytest.mark.parametrize("length", range(60, 130))
def test_records_of_every_length(length):
    member = Member(b"a", b"0", xattrs={"user.x": b"v" * length})
    assert members(header(member) + END)[0][0].xattrs == member.xattrs
