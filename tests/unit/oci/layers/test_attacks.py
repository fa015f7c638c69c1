"""Archives that mean harm: refused or harmless, and nothing outside of the root read or changed."""

from __future__ import annotations

import gzip
import os
import re
import resource
import signal
import tracemalloc
from pathlib import Path

import pytest

from pytest_sandbox.errors import InvalidImage, SandboxError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, MIB
from tests.unit.oci.layers.archives import (
    GNU,
    apply,
    file,
    folder,
    gnu_long,
    hardlink,
    header,
    listing,
    pax,
    symlink,
)

SECRET = b"the canary's secret"
OLD = 1_000_000_000_000_000_000


class Cage:
    """A root with a canary outside of it, at several places where attacks look."""

    def __init__(self, folder):
        self.top = folder
        self.root = folder / "store/layer/root"
        self.root.mkdir(parents=True)
        self.canaries = [folder / "canary", folder / "store/canary", folder / "store/layer/canary"]
        (folder / "store/layer/outside").mkdir()
        self.canaries.append(folder / "store/layer/outside/canary")
        for canary in self.canaries:
            canary.write_bytes(SECRET)
            canary.chmod(0o600)
            os.utime(canary, ns=(OLD, OLD))
        self.before = self._look()

    def _look(self):
        found = []
        for path in [*self.canaries, *(canary.parent for canary in self.canaries)]:
            status = path.stat()
            names = sorted(p.name for p in path.iterdir()) if path.is_dir() else status.st_atime_ns
            found.append(
                (path, status.st_ino, status.st_mode, status.st_uid, status.st_gid,
                 status.st_nlink, status.st_mtime_ns, names)
            )  # fmt: skip
        return sorted(found)

    def check(self):
        """Unread (their access time), untouched; and nothing inside is one of them."""
        assert self._look() == self.before
        inodes = {canary.stat().st_ino for canary in self.canaries}
        for top, _, files in os.walk(self.root):
            for path in (Path(top, name) for name in files):
                assert path.lstat().st_ino not in inodes
                if path.is_file() and not path.is_symlink():
                    with path.open("rb") as content:
                        assert SECRET not in content.read(1 << 20)


@pytest.fixture
def cage(tmp_path):
    found = Cage(tmp_path)
    yield found
    found.check()


UP = b"../" * 12
SPARSE = ((b"name", b"../canary"), (b"size", b"1"), (b"map", b"0,1"))

REFUSED = {
    "dot dot": (file(b"../canary", b"x"), "'..'"),
    "dot dot in the middle": (file(b"a/../../canary", b"x"), "'..'"),
    "dot dot at the end": (folder(b"a/.."), "'..'"),
    "dot dot behind a slash": (file(b"/../canary", b"x"), "'..'"),
    "dot dot in a pax path": (pax((b"path", b"../canary")) + file(b"fine", b"x"), "'..'"),
    "dot dot in a long name": (gnu_long(b"../canary") + file(b"fine", b"x", magic=GNU), "'..'"),
    "dot dot in a sparse name": (
        pax(*((b"GNU.sparse." + key, value) for key, value in SPARSE))
        + file(b"fine", b"x"), "'..'",
    ),
    "dot dot in a prefix": (file(b"canary", b"x", prefix=b"../.."), "'..'"),
    "dot dot in a folder": (folder(b"../outside", 0o777), "'..'"),
    "dot dot in a link's name": (symlink(b"../canary", b"x"), "'..'"),
    "dot dot in a whiteout": (file(b"../.wh.canary"), "'..'"),
    "a whiteout of dot dot": (file(b"a/.wh..."), "a whiteout names no file"),
    "a whiteout of dot": (file(b".wh.."), "a whiteout names no file"),
    "a whiteout of nothing": (file(b".wh."), "a whiteout names no file"),
    "an opaque dot dot": (file(b"../.wh..wh..opq"), "'..'"),
    "a folder that is a mark": (file(b".wh.d/x", b"x"), "begins with .wh."),
    "no name": (file(b"", b"x"), "its name is empty"),
    "no name, a link": (symlink(b"", UP + b"canary"), "its name is empty"),
    "a NUL in a pax path": (pax((b"path", b"a\0b")) + file(b"a"), "NUL byte"),
    "a NUL in a long name": (gnu_long(b"a\0../canary") + file(b"x", magic=GNU), "NUL byte"),
    "a NUL in a target": (pax((b"linkpath", b"a\0b")) + symlink(b"a", b"x"), "NUL byte"),
    "an empty target": (symlink(b"a", b""), "target is empty"),
    "the root as a file": (file(b".", b"x"), "the root must stay a folder"),
    "the root as a link": (symlink(b"./", UP), "the root must stay a folder"),
    "the root as a link, absolute": (symlink(b"/", b"/etc"), "the root must stay a folder"),
    "the root as a hard link": (hardlink(b".", b"a"), "the root must stay a folder"),
    "a hard link outside": (hardlink(b"a", UP + b"canary"), "'..'"),
    "a hard link through a link": (
        symlink(b"l", UP) + hardlink(b"a", b"l/../canary"), "'..'",
    ),
    "a hard link through a link, clamped": (
        symlink(b"l", UP) + hardlink(b"a", b"l/canary"), "does not exist",
    ),
    "a hard link, absolute": (hardlink(b"a", b"/etc/passwd"), "does not exist"),
    "a hard link to nothing": (hardlink(b"a", b""), "does not exist"),
    "a hard link to the root": (hardlink(b"a", b"/"), "does not exist"),
    "a hard link to a folder": (folder(b"d") + hardlink(b"a", b"d"), "which is no file"),
    "a hard link to what it removes": (
        folder(b"d") + file(b"d/f", b"x") + hardlink(b"d", b"d/f"), "does not exist",
    ),
    "a file as a folder": (file(b"f", b"x") + file(b"f/x", b"x"), "not a folder"),
    "links in a circle": (
        symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x", b"x"), "Too many levels",
    ),
    "a link to itself": (symlink(b"a", b"a/a") + file(b"a/x", b"x"), "Too many levels"),
    "a path that is too long": (pax((b"path", b"a/" * 3000 + b"x")) + file(b"a"), "longer than"),
    "a path that links make too long": (
        b"".join(
            pax((b"path", (b"l%d/" % at if at else b"") + b"d" * 200 + b"/x"))
            + file(b"x")
            + pax((b"linkpath", b"/" + b"/".join([b"d" * 200] * (at + 1))))
            + symlink(b"l%d" % (at + 1), b"x")
            for at in range(30)
        ), "File name too long",
    ),
    "long names without an end": (gnu_long(b"a") * 50 + file(b"x"), "two extended"),
    "a type that nobody knows": (header(b"a", b"Y"), "type b'Y' is unknown"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line_that_names_layer_member_and_rule(cage, data, rule):
    with pytest.raises(InvalidImage) as caught:
        apply(cage.root, data)
    what = caught.value.what
    assert re.match(r"layer 1: ['\"]", what)
    assert rule in what
    assert str(caught.value).isprintable()


HARMLESS = {
    "absolute": (file(b"/canary", b"x"), ["canary"]),
    "absolute, many slashes": (file(b"////a//./canary", b"x"), ["a/", "a/canary"]),
    "a link up, then through it": (
        symlink(b"up", UP) + file(b"up/canary", b"x"), ["canary", "up"],
    ),
    "a link out, absolute, then through it": (
        symlink(b"out", b"/tmp") + file(b"out/canary", b"x"), ["out", "tmp/", "tmp/canary"],
    ),
    "a link to a link up": (
        symlink(b"a", b"..") + symlink(b"b", b"a/../../a/..") + file(b"b/canary", b"x"),
        ["a", "b", "canary"],
    ),
    "a link in a folder that becomes a link": (
        folder(b"d") + symlink(b"d/l", b"..") + symlink(b"d", UP) + file(b"d/canary", b"x"),
        ["canary", "d"],
    ),
    "a link where a file is written": (
        symlink(b"f", UP + b"canary") + file(b"f", b"x"), ["f"],
    ),
    "a link where a folder is": (
        symlink(b"d", UP) + folder(b"d", 0o777) + file(b"d/canary", b"x"), ["d/", "d/canary"],
    ),
    "a link where a fifo is": (symlink(b"f", UP + b"canary") + header(b"f", b"6"), ["f"]),
    "a link where a device is": (symlink(b"f", UP + b"canary") + header(b"f", b"3"), ["f"]),
    "a hard link to a link out, written to": (
        symlink(b"s", UP + b"canary") + hardlink(b"h", b"s") + file(b"h", b"x"), ["h", "s"],
    ),
    "attributes for a link out": (
        pax((b"SCHILY.xattr.user.a", b"1")) + symlink(b"s", UP + b"canary", mtime=5), ["s"],
    ),
    "a whiteout through a link": (symlink(b"l", UP) + file(b"l/.wh.canary"), ["l"]),
    "an opaque folder through a link": (symlink(b"l", UP) + file(b"l/.wh..wh..opq"), ["l"]),
    "a magic link": (
        symlink(b"p", b"/proc/self/root") + file(b"p/canary", b"x"),
        ["p", "proc/", "proc/self/", "proc/self/root/", "proc/self/root/canary"],
    ),
    "a magic link to what is open": (
        symlink(b"p", b"/proc/self/cwd/..") + file(b"p/canary", b"x"),
        ["p", "proc/", "proc/self/", "proc/self/canary"],
    ),
    "backslashes and drives": (
        file(b"..\\..\\canary", b"x") + file(b"C:\\canary", b"x"), ["..\\..\\canary", "C:\\canary"],
    ),
    "a name that becomes another with case and accents": (
        symlink(b"LINK", UP) + folder(b"link") + file(b"link/canary", b"x"),
        ["LINK", "link/", "link/canary"],
    ),
    "devices": (header(b"sda", b"4") + header(b"mem", b"3"), ["mem", "sda"]),
    "an empty name in an extension means the header's": (
        pax((b"path", b"")) + file(b"fine", b"x"), ["fine"],
    ),
    "a link's name that ends with a slash": (
        symlink(b"l/", UP) + file(b"l/canary", b"x"), ["canary", "l"],
    ),
    "a folder's time through a link": (
        symlink(b"l", UP + b"outside") + file(b"l/x", b"x", mtime=3),
        ["l", "outside/", "outside/x"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "wanted"), HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_in_the_root(cage, data, wanted):
    apply(cage.root, data)
    assert listing(cage.root) == sorted(wanted)


@pytest.mark.parametrize("first", ["link", "folder"])
def test_what_one_layer_leaves_does_not_bend_the_next(cage, first):
    apply(cage.root, symlink(b"d", UP) if first == "link" else folder(b"d"))
    apply(cage.root, file(b"d/canary", b"x") + file(b"d/.wh.canary") + file(b"d/.wh..wh..opq"))
    apply(cage.root, symlink(b"d", b"/") + file(b"d/outside/canary", b"x"))
    apply(cage.root, folder(b"d") + file(b"d/canary"))
    assert "d/canary" in listing(cage.root)


def test_a_bomb_of_folders_that_are_not_listed(cage):
    bounds = DEFAULT_BOUNDS._replace(entries=5000)
    data = b"".join(
        pax((b"path", b"%d/" % number + b"a/" * 500 + b"x")) + file(b"x") for number in range(20)
    )
    with pytest.raises(InvalidImage, match="more than 5000 entries"):
        apply(cage.root, data, bounds=bounds)


def test_deep_folders_are_made_and_removed_again(cage):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    deep = b"a/" * 2000
    apply(cage.root, pax((b"path", deep + b"x")) + file(b"x", b"1"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        apply(cage.root, file(b".wh.a"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert listing(cage.root) == []


def test_memory_stays_small_whatever_is_served(cage):
    """Many long names below, whiteouts over them, and records up to their bound."""
    bounds = DEFAULT_BOUNDS._replace(ratio=10_000)
    long = b"/".join([b"n" * 250] * 8)
    names = [b"%d/" % number + long for number in range(60)]
    apply(cage.root, b"".join(pax((b"path", name)) + file(b"x") for name in names), bounds=bounds)
    large = pax((b"comment", b"c" * 900_000))
    data = b"".join(large + file(b"f%d" % n) for n in range(60))
    data += b"".join(pax((b"path", name)) + file(b"x") for name in names) + file(b".wh..wh..opq")
    packed = gzip.compress(data, 1)
    del data
    tracemalloc.start()
    try:
        apply(cage.root, packed, bounds=bounds, end=False)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_the_hosts_fault(cage):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SandboxError) as caught:
            apply(cage.root, gzip.compress(file(b"big", bytes(1 << 20)) + bytes(1024)), end=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not isinstance(caught.value, InvalidImage)
    assert caught.value.what.startswith("layer 1: 'big': File too large")


def test_a_good_layer_works_afterwards(cage):
    with pytest.raises(InvalidImage):
        apply(cage.root, folder(b"d", 0o700) + file(b"../canary"))
    good = cage.root.with_name("again")
    apply(good, folder(b"d", 0o711) + file(b"d/x", b"1"))
    assert listing(good) == ["d/", "d/x"]
    good.rename(cage.top / "moved")
    cage.before = cage._look()
