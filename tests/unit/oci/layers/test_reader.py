from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from tests.unit.oci.layers.archives import (
    END,
    GNU,
    POSIX,
    V7,
    apply,
    binary,
    file,
    folder,
    gnu_long,
    header,
    members,
    padded,
    pax,
    symlink,
)

SECOND = 1_000_000_000


def only(data, **more):
    [(member, content)] = members(data, **more)
    return member, content


@pytest.mark.parametrize("magic", [POSIX, GNU, V7])
def test_plain_members_of_every_format(magic):
    member, content = only(file(b"etc/a", b"text", magic=magic, mtime=7, mode=0o100755) + END)
    assert (member.name, content, member.mode, member.mtime) == (
        b"etc/a",
        b"text",
        0o755,
        7 * SECOND,
    )
    assert member.atime == 7 * SECOND


def test_prefixes_of_names():
    member, _ = only(file(b"b" * 100, prefix=b"a" * 155) + END)
    assert member.name == b"a" * 155 + b"/" + b"b" * 100
    star = header(b"name", prefix=b"p" * 131 + b"00000000001 00000000001 ", rest=b"tar\0")
    assert only(star + END)[0].name == b"p" * 131 + b"/name"
    assert only(file(b"n", prefix=b"x", magic=V7) + END)[0].name == b"n"
    # Go up to 1.8 wrote prefixes into GNU headers, where GNU tar keeps the access time
    assert only(file(b"n", prefix=b"usr/share", magic=GNU) + END)[0].name == b"usr/share/n"
    assert only(file(b"n", prefix=b"00000000005\0", magic=GNU) + END)[0].atime == 5 * SECOND


def test_long_names_of_gnu_tar():
    data = gnu_long(b"n" * 300) + gnu_long(b"t" * 200, b"K") + symlink(b"short", b"s", magic=GNU)
    member, _ = only(data + END)
    assert (member.name, member.link) == (b"n" * 300, b"t" * 200)


def test_pax_records_overrule_the_header():
    told = pax(
        (b"path", "größer/".encode() + b"x" * 200),
        (b"mtime", b"1.5"),
        (b"atime", b"-2.25"),
        (b"uid", b"3000000"),
        (b"gid", b"4000000"),
        (b"size", b"4"),
        (b"SCHILY.xattr.user.a", b"\0\xff=\n"),
        (b"uname", b"someone"),
    )
    member, content = only(told + header(b"short", size=0) + padded(b"four") + END)
    assert member.name == "größer/".encode() + b"x" * 200
    assert (member.mtime, member.atime) == (1_500_000_000, -2_250_000_000)
    assert (member.uid, member.gid, content) == (3000000, 4000000, b"four")
    assert member.xattrs == {"user.a": b"\0\xff=\n"}


def test_times_are_cut_to_nanoseconds_and_may_lie_before_1970():
    for text, wanted in [
        (b"1.1234567899", 1_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -SECOND // 2),
    ]:
        assert only(pax((b"mtime", text)) + file(b"a") + END)[0].mtime == wanted


def test_numbers_in_base_256():
    block = header(b"a", magic=GNU, uid=binary(5_000_000, 8), mtime=binary(-3, 12))
    member, _ = only(block + END)
    assert (member.uid, member.mtime) == (5_000_000, -3 * SECOND)


def test_an_empty_record_takes_a_value_back_and_the_last_of_several_wins():
    told = pax((b"path", b"one"), (b"path", b"two"), (b"linkpath", b"x"), (b"linkpath", b""))
    member, _ = only(told + symlink(b"header", b"target") + END)
    assert (member.name, member.link) == (b"two", b"target")


def test_an_old_folder_is_a_file_with_a_slash():
    member, _ = only(header(b"dir/", b"\0", magic=V7) + END)
    assert member.kind == b"5"


def test_the_data_of_a_size_record_is_skipped_by_that_size():
    """What two readers could see differently: the header says 0, the record 1024."""
    inner = file(b"evil", b"")
    data = pax((b"size", b"1024")) + header(b"a", size=0) + inner + bytes(512) + file(b"b") + END
    assert [member.name for member, _ in members(data)] == [b"a", b"b"]


def test_links_have_no_data_whatever_their_size_says():
    data = header(b"l", b"1", size=512, link=b"a") + file(b"b", b"x") + END
    assert [member.name for member, _ in members(data)] == [b"l", b"b"]


def test_an_archive_may_end_without_its_end_and_be_empty():
    assert members(b"") == []
    assert members(END) == []
    assert [m.name for m, _ in members(file(b"a", b"x"))] == [b"a"]
    assert [m.name for m, _ in members(file(b"a") + END + b"trailing garbage" * 99)] == [b"a"]


def test_comments_of_the_whole_archive_mean_nothing():
    data = pax((b"comment", b"a commit"), kind=b"g") + file(b"a") + END
    assert only(data)[0].name == b"a"


def sparse_1(major):
    told = {b"major": major, b"minor": b"0", b"realsize": b"9"}
    return pax(*((b"GNU.sparse." + key, value) for key, value in told.items()))


REFUSED = {
    "no archive": (b"<html>" + bytes(1000), "first header has a wrong checksum"),
    "wrong checksum": (file(b"a") + header(b"b", checksum=1), "behind it has a wrong checksum"),
    "cut in a header": (file(b"a", b"x") + bytes(100), "ends inside of a header"),
    "cut in data": (header(b"a", size=4096) + bytes(512), "'a': the archive ends inside of it"),
    "cut in a long name": (gnu_long(b"n" * 600)[:1024], "ends inside"),
    "ends behind an extension": (pax((b"path", b"a")) + END, "ends behind an extended header"),
    "one empty record": (bytes(512) + file(b"a") + END, "empty record in the middle"),
    "unknown type": (header(b"a", b"Z") + END, "'a': its type b'Z' is unknown"),
    "multi-volume": (header(b"a", b"M") + END, "its type b'M' is unknown"),
    "Solaris records": (header(b"a", b"X") + END, "its type b'X' is unknown"),
    "two long names": (gnu_long(b"a") + gnu_long(b"b") + file(b"c") + END, "two extended headers"),
    "two pax headers": (pax((b"path", b"a")) * 2 + file(b"c") + END, "two extended headers"),
    "pax: no length": (header(b"x", b"x", size=4) + padded(b"a=b\n") + file(b"a"), "no list of"),
    "pax: length too long": (
        header(b"x", b"x", size=8) + padded(b"99 a=bc\n") + file(b"a"), "no list of records",
    ),
    "pax: length too short": (
        header(b"x", b"x", size=9) + padded(b"5 ab=cde\n") + file(b"a"), "no list of records",
    ),
    "pax: no keyword": (header(b"x", b"x", size=6) + padded(b"6 =ab\n") + file(b"a"), "keyword"),
    "pax: an attribute with a NUL": (
        pax((b"SCHILY.xattr.user.a\0b", b"1")) + file(b"a") + END, "has the name b'user.a",
    ),
    "pax: negative size": (pax((b"size", b"-1")) + file(b"a") + END, "size b'-1' is no number"),
    "pax: odd number": (pax((b"uid", b"1_0")) + file(b"a") + END, "uid b'1_0' is no number"),
    "pax: odd time": (pax((b"mtime", b"1e3")) + file(b"a") + END, "time b'1e3' is no time"),
    "pax: time out of range": (pax((b"mtime", b"9" * 18)) + file(b"a") + END, "out of range"),
    "pax for all members": (pax((b"path", b"x"), kind=b"g") + file(b"a") + END, "global header"),
    "octal with a nine": (header(b"a", uid=b"0000009\0") + END, "its uid b'0000009"),
    "negative size": (header(b"a", size=binary(-5, 12)) + END, "its size is -5"),
    "sparse without a size": (pax((b"GNU.sparse.map", b"0,1")) + file(b"a", b"x"), "real size"),
    "sparse of version 2": (
        sparse_1(b"2")
        + file(b"a", b"x"), "unknown format",
    ),
    "sparse map of three": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"3")) + file(b"a", b"x"), "of a pair"
    ),
    "sparse beyond its end": (
        pax((b"GNU.sparse.size", b"3"), (b"GNU.sparse.map", b"2,4")) + file(b"a", b"xxxx"), "fit",
    ),
    "sparse parts that overlap": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"2,2,3,2")) + file(b"a", b"xxxx"),
        "does not fit",
    ),
    "sparse with data left": (
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,2")) + file(b"a", b"xxxx"),
        "has 2 bytes, the archive 4",
    ),
    "sparse bomb": (
        pax((b"GNU.sparse.size", b"9" * 18), (b"GNU.sparse.map", b"0,1")) + file(b"a", b"x"),
        "is over the bound",
    ),
    "sparse S without GNU": (header(b"a", b"S") + END, "not GNU tar's"),
    "sparse map is too long": (
        sparse_1(b"1")
        + file(b"a", b"9999999\n"), "longer than its data",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_plain_is_refused_in_one_line(data, rule):
    with pytest.raises(InvalidImage) as caught:
        members(data)
    assert rule in caught.value.what
    assert caught.value.what.startswith("layer 1: ")
    assert "\n" not in str(caught.value)


def test_long_records_are_refused_before_they_are_read():
    bounds = DEFAULT_BOUNDS._replace(record=1000)
    members(pax((b"comment", b"x" * 900)) + file(b"a") + END, bounds)
    for data in (pax((b"comment", b"x" * 1000)), gnu_long(b"n" * 1000)):
        with pytest.raises(InvalidImage, match="over the bound of 1000"):
            members(data + file(b"a") + END, bounds)
    huge = header(b"x", b"x", size=1 << 32)  # there is nothing behind it to read
    with pytest.raises(InvalidImage, match="over the bound"):
        members(huge)


def sparse_file(path):
    with path.open("wb") as out:
        for at, text in [(0, b"first"), (1 << 20, b"middle" * 1000), (3 << 20, b"last")]:
            out.seek(at)
            out.write(text)
        out.truncate(5 << 20)
    return path.read_bytes()


FORMATS = ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("option", FORMATS)
@pytest.mark.parametrize("parts", [3, 60])
def test_sparse_files_as_gnu_tar_writes_them(tmp_path, option, parts):
    content = sparse_file(tmp_path / "sparse")
    if parts > 3:  # more than fit into a header
        with (tmp_path / "sparse").open("r+b") as out:
            for number in range(parts):
                out.seek((4 << 20) + number * 16384)
                out.write(b"part %d" % number)
        content = (tmp_path / "sparse").read_bytes()
    (tmp_path / "plain").write_bytes(b"behind it")
    form = [option] if option.startswith("--format") else ["--format=pax", option]
    command = ["tar", "--sparse", *form, "-C", tmp_path, "-cf", tmp_path / "a.tar"]
    subprocess.run([*command, "sparse", "plain"], check=True)
    data = (tmp_path / "a.tar").read_bytes()
    assert len(data) < 1 << 20  # it is sparse
    apply(tmp_path / "out", data, end=False)
    assert (tmp_path / "out/sparse").read_bytes() == content
    assert (tmp_path / "out/plain").read_bytes() == b"behind it"
    assert (tmp_path / "out/sparse").stat().st_blocks * 512 < 2 << 20


def test_folders_need_no_data(tmp_path):
    apply(tmp_path / "out", folder(b"a") + file(b"a/b", b"x"))
    assert (tmp_path / "out/a/b").read_bytes() == b"x"


EVERYTHING = (
    folder(b"d") + file(b"d/a", b"x" * 600) + symlink(b"l", b"d") + header(b"f", b"6")
    + pax((b"path", b"q/" * 30 + b"e"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"1"))
    + file(b"x", b"1") + gnu_long(b"g" * 120) + file(b"x", b"2", magic=GNU)
    + pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,1")) + file(b"a", b"x")
    + header(b"l", b"1", link=b"d/a") + file(b".wh.d") + file(b"d/.wh..wh..opq") + END
)  # fmt: skip


def repaired(data):
    """With right checksums again, so that what was changed is looked at."""
    out = b""
    for at in range(0, len(data), 512):
        block = data[at : at + 512]
        if block[257:262] == b"ustar":
            block = block[:148] + b" " * 8 + block[156:]
            block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
        out += block
    return out


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(st.integers(0, len(EVERYTHING) - 1), st.integers(0, 255)), min_size=1, max_size=5
    ),
    st.booleans(),
)
def test_whatever_is_changed_there_is_an_error_in_one_line_or_none(changes, repair):
    data = bytearray(EVERYTHING)
    for at, value in changes:
        data[at] = value
    packed = repaired(bytes(data)) if repair else bytes(data)
    with tempfile.TemporaryDirectory() as top:
        try:
            said = apply(Path(top, "root"), packed, end=False).diff_id
        except InvalidImage as error:
            said = error.headline()
    assert said.isprintable()
    assert said.startswith(("sha256:", "image: upstream: layer 1: "))
