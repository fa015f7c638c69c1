"""Untrusted archives: what is kept, what is refused, and that nothing of them touches the host."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import replace

import pytest
import zstandard

from pytest_sandbox.archives import BOUNDS, sniff, transcode
from pytest_sandbox.errors import Blame, StepFailed

PACKERS = {
    "tar": lambda data: data,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstandard.compress,
}


def member(name, data=b"", *, kind=tarfile.REGTYPE, link="", mode=0o644, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    info.mtime = 1_700_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name, **fields):
    return member(name, kind=tarfile.DIRTYPE, **({"mode": 0o755} | fields))


def link(name, target):
    return member(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hard(name, target):
    return member(name, kind=tarfile.LNKTYPE, link=target)


def tar_bytes(*members, format=tarfile.GNU_FORMAT):
    """Headers as they are given: tarfile's own writer would mend what these tests need broken."""
    out = io.BytesIO()
    for info, data in members:
        out.write(info.tobuf(format, "utf-8", "surrogateescape"))
        out.write(data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


class Member:
    """A TarInfo with its content."""

    def __init__(self, info, body):
        self.info, self.body = info, body

    def __getattr__(self, name):
        return getattr(self.info, name)


@pytest.fixture
def clean(tmp_path):
    """Transcode bytes; the members that come out by name."""

    def run(data, format="tar", **options):
        source = tmp_path / "archive"
        source.write_bytes(data)
        out = io.BytesIO()
        run.out = out
        run.report = transcode(source, format, out, **options)
        out.seek(0)
        found = {}
        with tarfile.open(fileobj=out, mode="r:") as tar:
            for info in tar:
                body = tar.extractfile(info).read() if info.isreg() else b""
                assert not (
                    info.pax_headers and info.mtime == int(info.mtime) and info.name.isascii()
                )
                found[info.name] = Member(info, body)
        return found

    return run


@pytest.fixture
def refused(clean):
    def run(data, text, format="tar", blame=Blame.UPSTREAM, **options):
        with pytest.raises(StepFailed) as info:
            clean(data, format, **options)
        assert text in info.value.what
        assert info.value.blame is blame
        assert info.value.next_step
        assert not clean.out.getvalue().endswith(bytes(1024)), "no reader may take it for whole"
        return info.value

    return run


TREE = (
    folder("jq-1.7/"),
    folder("jq-1.7/bin", mode=0o1755),
    member("jq-1.7/bin/jq", b"#!/bin/sh\n" * 100, mode=0o6755, uid=1000, gid=1000, uname="eve"),
    link("jq-1.7/bin/alias", "../bin/jq"),
    hard("jq-1.7/jq", "jq-1.7/bin/jq"),
    member("jq-1.7/größe \udcff", b"x", mode=0o600),
    member("README", b"top"),
)


@pytest.mark.parametrize("format", list(PACKERS))
def test_a_tree_comes_out_clean(clean, format):
    found = clean(PACKERS[format](tar_bytes(*TREE)), format, strip=1)
    assert list(found) == ["bin", "bin/jq", "bin/alias", "jq", "größe \udcff"]
    jq = found["bin/jq"]
    assert jq.body == b"#!/bin/sh\n" * 100
    assert (jq.mode, jq.uid, jq.gid, jq.uname, jq.mtime) == (0o755, 0, 0, "", 1_700_000_000)
    assert found["bin"].isdir()
    assert found["bin"].mode == 0o755
    assert found["bin/alias"].linkname == "../bin/jq"
    assert found["jq"].islnk()
    assert found["jq"].linkname == "bin/jq"
    assert (clean.report.entries, clean.report.bytes) == (5, 1001)


@pytest.mark.parametrize("name", ["jq.tar.gz", "jq.tgz", "jq-v1.TAR.GZ", "0ab1"])
def test_auto_goes_by_the_name_and_then_by_the_content(clean, name):
    assert "README" in clean(gzip.compress(tar_bytes(*TREE)), "auto", name=name)


@pytest.mark.parametrize("format", list(PACKERS))
def test_sniff_knows_every_format(tmp_path, format):
    source = tmp_path / "x"
    source.write_bytes(PACKERS[format](tar_bytes(*TREE)))
    assert sniff(source) == format


def test_concatenated_streams_are_one(clean):
    data = tar_bytes(*TREE)
    for format in ("tar.gz", "tar.bz2", "tar.xz", "tar.zst"):
        packed = PACKERS[format](data[:700]) + PACKERS[format](data[700:])
        assert len(clean(packed, format)) == 7
    assert len(clean(lzma.compress(data) + bytes(8), "tar.xz")) == 7


def test_owner_and_fractional_times(clean):
    info, data = member("a", b"1", mtime=1.5)
    found = clean(tar_bytes((info, data), format=tarfile.PAX_FORMAT), uid=12, gid=34)
    assert (found["a"].uid, found["a"].gid, found["a"].mtime) == (12, 34, 1.5)


@pytest.mark.parametrize("mtime", ["nan", "inf", "-5", "1e300"])
def test_impossible_times_become_zero(clean, mtime):
    info, data = member("a", b"1")
    info.pax_headers = {"mtime": mtime}
    assert clean(tar_bytes((info, data), format=tarfile.PAX_FORMAT))["a"].mtime == 0


def test_gnu_tar_unpacks_what_comes_out(clean, tmp_path):
    clean(tar_bytes(*TREE), strip=1)
    target = tmp_path / "target"
    target.mkdir()
    argv = ["tar", "-x", "-C", target]
    subprocess.run(argv, input=clean.out.getvalue(), check=True, capture_output=True)
    assert (target / "jq").stat().st_ino == (target / "bin/jq").stat().st_ino
    assert (target / "bin/alias").read_bytes() == b"#!/bin/sh\n" * 100


def test_the_filter_takes_stripped_paths_and_folders(clean, refused):
    data = tar_bytes(*TREE)
    assert list(clean(data, strip=1, files=["bin/jq"])) == ["bin/jq"]
    assert list(clean(data, strip=1, files=["./bin/"])) == ["bin", "bin/jq", "bin/alias"]
    refused(data, "does not hold 'jq.exe'", blame=Blame.RECIPE, files=["README", "jq.exe"])
    refused(data, "cannot select", blame=Blame.RECIPE, files=["../x"])
    refused(data, "no regular file that comes before", strip=1, files=["jq"])


def test_stripping_everything_is_the_recipes_fault(refused):
    refused(tar_bytes(*TREE), "strip_dirs = 9", blame=Blame.RECIPE, strip=9)


def test_the_root_itself_is_skipped(clean):
    assert list(clean(tar_bytes(folder("./"), member("./a/.//a", b"1")))) == ["a/a"]


BAD_NAMES = {
    "/etc/passwd": "absolute",
    "../x": "climbs",
    "a/../../x": "climbs",
    "a/..": "climbs",
    "C:\\x": "drive",
    "c:/x": "drive",
    "\\\\server\\x": "drive",
    ".": "takes the place",
    "a" * 256: "component of more than 255",
    "a/" * 300 + "a": "components",
    "a/" + "/".join(["b" * 250] * 17): "bytes and",
}


@pytest.mark.parametrize("name", list(BAD_NAMES))
def test_bad_names_are_refused_in_tar_and_zip(refused, name):
    refused(tar_bytes(member(name, b"x")), BAD_NAMES[name])
    refused(tar_bytes(member(name, b"x"), format=tarfile.PAX_FORMAT), BAD_NAMES[name])
    refused(zip_bytes((name, b"x")), BAD_NAMES[name], "zip")


def test_empty_names_and_nul_are_refused(refused):
    refused(tar_bytes(member("", b"x")), "empty name")
    info, data = member("a", b"x")
    info.pax_headers = {"path": "a\0b"}
    refused(tar_bytes((info, data), format=tarfile.PAX_FORMAT), "NUL")
    name = b"a/b"
    refused(zip_bytes(("a/b", b"x")).replace(name, b"a\0b"), "NUL", "zip")


def test_an_error_names_archive_and_member_and_stays_short(refused):
    error = refused(tar_bytes(member("/" + "x" * 3000 + "\n", b"")), "absolute", name="jq.tar")
    assert error.what.startswith("archive jq.tar: member '/xxx")
    assert len(str(error)) < 600
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("/etc/passwd", "absolute path"),
        ("../../x", "out of the archive"),
        ("../..", "out of the archive"),
        ("b/../../../a/x", "out of the archive"),
        ("x" * 5000, "5000 bytes"),
    ],
)
def test_symlinks_stay_inside(refused, target, text):
    refused(tar_bytes(link("a/link", target)), text)
    refused(zip_bytes(("a/link", target.encode(), stat.S_IFLNK | 0o777)), "symlink", "zip")


def test_symlinks_inside_are_kept(clean):
    assert clean(tar_bytes(link("a/b/l", "../../c")))["a/b/l"].linkname == "../../c"
    assert clean(tar_bytes(link("l", ".")))["l"].linkname == "."


def test_a_symlink_that_only_fits_before_stripping_is_refused(refused):
    refused(tar_bytes(link("top/l", "../x")), "out of the archive", strip=1)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ((link("d", "e"), member("d/x", b"1")), "lies below 'd', which is a symlink"),
        ((link("d", "e"), folder("d/x")), "lies below 'd', which is a symlink"),
        ((link("./d", "e"), hard("z", "d")), "no regular file"),
        ((member("d", b"1"), member("d/x", b"1")), "lies below 'd', which is a file"),
        ((link("d", "e"), folder("d")), "is a symlink first and a folder later"),
        ((link("d", "e"), member("d", b"x")), "is a symlink first and a file later"),
        ((member("d/x", b"1"), link("d", "e")), "is a folder first and a symlink later"),
        ((member("d", b"1"), link("d", "e")), "is a file first and a symlink later"),
        ((hard("a", "/etc/passwd"),), "absolute"),
        ((hard("a", "../x"),), "climbs"),
        ((hard("a", "b"), member("b", b"1")), "no regular file that comes before"),
        ((member("a", b"1"), hard("a", "a")), "no regular file"),
        ((folder("a"), hard("b", "a")), "no regular file"),
        ((member("a", kind=tarfile.CHRTYPE),), "a device or a FIFO"),
        ((member("a", kind=tarfile.BLKTYPE),), "a device or a FIFO"),
        ((member("a", kind=tarfile.FIFOTYPE),), "a device or a FIFO"),
        ((member("a", kind=b"Z"),), "unknown type"),
    ],
)
def test_members_that_cheat_are_refused(refused, members, text):
    refused(tar_bytes(*members), text)


def test_a_name_that_comes_twice_as_the_same_kind_is_written_twice(clean):
    found = clean(tar_bytes(folder("d"), member("d/a", b"old"), folder("d"), member("d/a", b"new")))
    assert found["d/a"].body == b"new"
    assert clean.report.entries == 4


def test_a_device_that_the_filter_drops_is_no_matter(clean):
    data = tar_bytes(member("dev/null", kind=tarfile.CHRTYPE), member("a", b"1"))
    assert list(clean(data, files=["a"])) == ["a"]


def test_sparse_files_are_refused(refused, tmp_path):
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    for format in ("gnu", "pax"):
        for version in ("0.0", "0.1", "1.0"):
            argv = ["tar", "-c", "-S", f"--format={format}", "-C", tmp_path, "hole"]
            if format == "pax":
                argv.insert(2, f"--sparse-version={version}")
            data = subprocess.run(argv, check=True, capture_output=True).stdout
            refused(data, "sparse")


@pytest.mark.parametrize("kind", [b"x", b"L", b"g", b"K"])
def test_huge_headers_do_not_fill_the_memory(refused, kind):
    info = member("h", kind=kind)[0]
    info.size = 1 << 33
    refused(tar_bytes((info, bytes(4096))), "headers of one member are too large")


def test_a_chain_of_headers_without_end_is_refused(refused):
    chain = [member("././@LongLink", b"", kind=b"L")] * 2000
    refused(tar_bytes(*chain, member("a", b"1")), "tar headers")


def test_a_huge_sparse_map_is_refused(refused):
    info, _ = member("a", b"")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": "1",
    }
    body = b"9" * 20 + b"\n" + b"1\n" * (2 << 20)
    info.size = len(body)
    refused(tar_bytes((info, body), format=tarfile.PAX_FORMAT), "too large")


def test_a_damaged_header_in_the_middle_is_no_end(refused):
    data = bytearray(tar_bytes(member("a", b"1"), member("b", b"2")))
    data[1024 + 150] ^= 0xFF
    refused(bytes(data), "header at byte 1024 is damaged")


def test_negative_sizes_are_refused(refused):
    info, _ = member("a", b"")
    info.size = -4096
    refused(tar_bytes((info, b""), member("b", b"")), "")


@pytest.mark.parametrize("format", list(PACKERS))
def test_a_cut_archive_is_refused(refused, format):
    noise = b"".join(zlib.crc32(b"%d" % n).to_bytes(4, "big") for n in range(20_000))
    data = PACKERS[format](tar_bytes(member("a", noise)))
    refused(data[: len(data) // 2], "", format)


@pytest.mark.parametrize("format", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_damaged_stream_is_refused(refused, format):
    noise = b"".join(zlib.crc32(b"%d" % n).to_bytes(4, "big") for n in range(20_000))
    packed = zstandard.ZstdCompressor(write_checksum=True).compress
    data = bytearray(
        (packed if format == "tar.zst" else PACKERS[format])(tar_bytes(member("a", noise)))
    )
    data[len(data) // 2] ^= 0xFF
    refused(bytes(data), "damaged", format)


def test_a_wrong_format_names_the_right_one(refused):
    error = refused(gzip.compress(tar_bytes(*TREE)), "looks like tar.gz", "zip", blame=Blame.RECIPE)
    assert error.next_step == 'write format = "tar.gz"'
    refused(b"<html>", "", "tar.gz")
    refused(b"", "empty", "tar")
    refused(b"x" * 2000, "damaged", "tar")


def test_unknown_formats_and_lzip(refused):
    refused(b"x", "'rar' is no known archive format", "rar", blame=Blame.RECIPE)
    refused(b"x", "neither its name nor its content", "auto", blame=Blame.RECIPE)
    refused(b"LZIP", "not supported", "tar.lz", blame=Blame.UNSUPPORTED)
    refused(b"LZIP\1", "not supported", "auto", blame=Blame.UNSUPPORTED)


@pytest.mark.parametrize("format", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_bombs_end_at_their_ratio(refused, format):
    bounds = replace(BOUNDS, ratio_from=1 << 20)
    data = PACKERS[format](tar_bytes(member("a", b"1" * (64 << 20))))
    refused(data, "decompression bomb", format, bounds=bounds)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_total_entries_and_depth_are_bounded(refused, clean):
    refused(
        tar_bytes(member("a", bytes(9000))), "more than 5000", bounds=replace(BOUNDS, total=5000)
    )
    three = replace(BOUNDS, entries=3)
    assert len(clean(tar_bytes(member("a/b/c", b"")), bounds=three)) == 1
    refused(tar_bytes(member("a/b/c", b""), member("d", b"")), "more than 3", bounds=three)
    refused(tar_bytes(*[folder("a")] * 4), "more than 3 members", bounds=three)
    refused(zip_bytes(*[(f"{n}", b"") for n in range(4)]), "more than 3", "zip", bounds=three)
    refused(zip_bytes(*[("d/", b"")] * 4), "more than 3 members", "zip", bounds=three)


def test_large_windows_are_refused(refused):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packer.compress(tar_bytes(*TREE)) + packer.flush()
    refused(data, "damaged", "tar.zst")
    small = replace(BOUNDS, window=1 << 20)
    data = zstandard.compress(tar_bytes(member("a", b"1" * (4 << 20))))
    refused(data, "damaged", "tar.zst", bounds=small)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20, "preset": 0}]
    refused(lzma.compress(tar_bytes(*TREE), filters=filters), "emory usage limit", "tar.xz")


def test_a_large_archive_needs_little_memory(tmp_path):
    """1 GiB and 20,000 small files before it, in a process of its own."""
    source = tmp_path / "large.tar.zst"
    with (
        zstandard.open(source, "wb") as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for n in range(20_000):
            tar.addfile(tarfile.TarInfo(f"folder-{n % 100}/{n}"))
        info = tarfile.TarInfo("large")
        info.size = 1 << 30
        tar.addfile(info, Zeros(info.size))
    script = f"""
import resource, sys
from pathlib import Path
import zstandard
from pytest_sandbox.archives import Bounds, transcode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bounds = Bounds(ratio=1 << 30)
report = transcode(Path({str(source)!r}), "auto", open("/dev/null", "wb"), bounds=bounds)
print(report.entries, report.bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    entries, size, kibibytes = map(int, done.stdout.split())
    assert (entries, size) == (20_001, 1 << 30)
    assert kibibytes < 64 << 10


class Zeros:
    def __init__(self, size):
        self.left = size

    def read(self, size):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def zip_bytes(*members, system=3, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, data[, st_mode])."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data, *mode in members:
            info = zipfile.ZipInfo("x", (2024, 5, 6, 7, 8, 10))
            info.filename = name
            info.create_system = system
            info.compress_type = method
            info.external_attr = (mode[0] if mode else 0) << 16
            archive.writestr(info, data)
    return out.getvalue()


def test_a_zip_comes_out_clean(clean):
    found = clean(
        zip_bytes(
            ("top/", b"", stat.S_IFDIR | 0o750),
            ("top/run", b"#!", stat.S_IFREG | 0o4755),
            ("top/größe", b"x" * 5000, stat.S_IFREG),
            ("top/l", b"./run", stat.S_IFLNK | 0o777),
        ),
        "zip",
        strip=1,
    )
    assert list(found) == ["run", "größe", "l"]
    assert (found["run"].mode, found["run"].body) == (0o755, b"#!")
    assert (found["größe"].mode, found["größe"].body) == (0o644, b"x" * 5000)
    assert found["l"].linkname == "./run"
    assert found["run"].mtime == 1_714_979_290


def test_a_zip_from_windows_has_default_modes(clean):
    found = clean(zip_bytes(("d/", b"", 0o777), ("d/a", b"1", 0o777), system=0), "zip")
    assert (found["d"].mode, found["d/a"].mode) == (0o755, 0o644)


def test_a_zip_by_the_zip_program_of_others(clean, tmp_path):
    """An extended timestamp, data descriptors (written to a pipe), a comment, and data in front."""
    out = io.BytesIO()

    class Pipe(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            return out.write(data)

    with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("a")
        info.extra = struct.pack("<HHBl", 0x5455, 5, 1, 1_600_000_000)
        archive.writestr(info, b"1" * 100)
        archive.comment = b"said"
    found = clean(out.getvalue(), "zip")
    assert (found["a"].body, found["a"].mtime) == (b"1" * 100, 1_600_000_000)
    assert found["a"].body == clean(b"MZ stub" + out.getvalue(), "zip")["a"].body


def test_a_zip64_is_read(clean):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("a", "w", force_zip64=True) as file:
        file.write(b"1")
    assert clean(out.getvalue(), "zip")["a"].body == b"1"


def patched(data, offset, value):
    return data[:offset] + value + data[offset + len(value) :]


def test_zip_tricks_are_refused(refused):
    plain = zip_bytes(("aa", b"1" * 100), ("bb", b"2" * 100), method=zipfile.ZIP_STORED)
    first = plain.index(b"PK\1\2")
    second = plain.index(b"PK\1\2", first + 1)
    contradiction = "contradicts the central directory"
    refused(patched(plain, 30, b"cc"), contradiction, "zip")
    refused(patched(plain, 14, b"\0\0\0\0"), contradiction, "zip")
    refused(patched(plain, 22, b"\1\0\0\0"), contradiction, "zip")
    refused(patched(plain, 8, b"\x08\0"), contradiction, "zip")
    overlapping = patched(plain, second + 42, plain[first + 42 : first + 46])
    refused(overlapping, "overlaps", "zip")
    longer = patched(plain, first + 20, struct.pack("<LL", 120, 120))
    refused(patched(longer, 18, struct.pack("<LL", 120, 120)), "overlaps", "zip")
    outside = patched(plain, first + 42, struct.pack("<L", len(plain)))
    refused(outside, "", "zip")
    encrypted = patched(patched(plain, 6, b"\1\0"), first + 8, b"\1\0")
    refused(encrypted, "is encrypted", "zip")
    refused(patched(plain, 100, b"9"), "damaged", "zip")
    refused(plain + b"trailing", "something follows", "zip")
    refused(plain[: len(plain) // 2], "no central directory", "zip")
    refused(zip_bytes(("a", b"1"), method=zipfile.ZIP_LZMA), "compression method 14", "zip")
    refused(zip_bytes(("a", b"1"), method=zipfile.ZIP_BZIP2), "compression method 12", "zip")


def test_zip_members_of_strange_kinds_are_refused(refused):
    refused(zip_bytes(("a", b"", stat.S_IFIFO)), "a device, a FIFO or a socket", "zip")
    refused(zip_bytes(("a", b"", stat.S_IFCHR)), "a device", "zip")
    refused(zip_bytes(("a/", b"x", stat.S_IFREG)), "called a folder", "zip")
    refused(zip_bytes(("d", b"e", stat.S_IFLNK), ("d/x", b"1")), "below 'd'", "zip")
    refused(zip_bytes(("d", b"", stat.S_IFLNK)), "target of 0 bytes", "zip")


def test_zip_bombs_end_at_their_ratio(refused):
    bounds = replace(BOUNDS, ratio_from=1 << 20)
    refused(zip_bytes(("a", b"1" * (64 << 20))), "decompression bomb", "zip", bounds=bounds)


def test_a_size_that_lies_does_not_help_a_zip_bomb(refused):
    data = zip_bytes(("a", bytes(1 << 20)))
    central = data.index(b"PK\1\2")
    small = struct.pack("<L", 10)
    refused(patched(patched(data, 22, small), central + 24, small), "damaged", "zip")
