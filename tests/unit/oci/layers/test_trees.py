"""Files in and out of trees, confined opening, changes of an overlay, removal."""

from __future__ import annotations

import errno
import os
import resource
import stat
import tempfile
import time

import pytest

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from pytest_sandbox.oci.layers import removal, root, transfer
from pytest_sandbox.oci.layers.changes import changes
from tests.unit.oci.layers.archives import (
    END,
    apply,
    descriptor_of,
    file,
    folder,
    hardlink,
    header,
    listing,
    members,
    symlink,
)

UP = b"../" * 12


@pytest.fixture
def tree(tmp_path):
    """A tree, and a canary beside it."""
    (tmp_path / "canary").write_text("canary")
    data = folder(b"etc") + file(b"etc/passwd", b"root:x:0:0") + symlink(b"up", UP)
    data += symlink(b"etc/out", UP + b"canary") + symlink(b"etc/abs", b"/etc/passwd")
    data += symlink(b"etc/loop", b"loop") + header(b"etc/fifo", b"6") + folder(b"etc/sub")
    data += file(b"etc/sub/f", b"F", mtime=5) + hardlink(b"etc/sub/g", b"etc/sub/f")
    data += symlink(b"dir", b"/etc/sub") + symlink(b"proc", b"/proc/self/root/etc")
    apply(tmp_path / "tree", data)
    return tmp_path / "tree"


@pytest.fixture
def handle(tree):
    found = os.open(tree, os.O_RDONLY)
    yield found
    os.close(found)


def by_kernel(handle, path, flags, **more):
    return root.open_in_root(handle, path, flags, **more)


def by_hand(handle, path, flags, *, follow=True):
    flags |= os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    return root.open_by_hand(handle, path, flags)


@pytest.mark.parametrize("opener", [by_kernel, by_hand])
class TestConfined:
    @pytest.mark.parametrize(
        "path",
        [b"/etc/passwd", b"etc/abs", b"up/etc/passwd", b"/up/../etc/abs", b"../../etc/passwd",
         b"etc//./passwd", b"etc/sub/../passwd"],
    )  # fmt: skip
    def test_paths_lead_to_the_trees_own_files(self, handle, opener, path):
        found = opener(handle, path, os.O_RDONLY)
        assert os.read(found, 100) == b"root:x:0:0"
        os.close(found)

    @pytest.mark.parametrize(
        ("path", "number"),
        [(b"etc/out", errno.ENOENT), (b"up/canary", errno.ENOENT), (b"etc/loop", errno.ELOOP),
         (b"etc/passwd/x", errno.ENOTDIR), (b"missing/x", errno.ENOENT)],
    )  # fmt: skip
    def test_nothing_else_is_found(self, handle, opener, path, number):
        with pytest.raises(OSError, match=os.fsdecode(path)[:3]) as caught:
            opener(handle, path, os.O_RDONLY)
        wanted = {number, errno.ENOENT} if opener is by_hand else {number}
        assert caught.value.errno in wanted

    def test_a_link_itself_can_be_opened(self, handle, opener):
        found = opener(handle, b"etc/out", os.O_PATH, follow=False)
        assert stat.S_ISLNK(os.fstat(found).st_mode)
        os.close(found)
        with pytest.raises(OSError, match="out"):
            opener(handle, b"etc/out", os.O_RDONLY, follow=False)

    def test_folders_and_the_root(self, handle, opener, tree):
        for path, wanted in [(b"/", tree), (b"dir", tree / "etc/sub"), (b"up", tree), (b".", tree)]:
            found = opener(handle, path, os.O_RDONLY | os.O_DIRECTORY)
            assert os.fstat(found).st_ino == wanted.stat().st_ino
            os.close(found)

    def test_a_fifo_does_not_block(self, handle, opener):
        began = time.monotonic()
        os.close(opener(handle, b"etc/fifo", os.O_RDONLY))
        assert time.monotonic() - began < 5


def test_only_regular_files_are_read(handle):
    assert root.read_regular(handle, "/etc/passwd", 100) == b"root:x:0:0"
    for path, number in [("etc/fifo", errno.EINVAL), ("etc", errno.EINVAL), ("no", errno.ENOENT)]:
        with pytest.raises(OSError, match=path) as caught:
            root.read_regular(handle, path, 100)
        assert caught.value.errno == number
    with pytest.raises(OSError, match="longer than 9 bytes"):
        root.read_regular(handle, "/etc/passwd", 9)


def got(handle, path):
    with tempfile.TemporaryFile() as out:
        transfer.get(out.fileno(), handle, path, DEFAULT_BOUNDS)
        out.seek(0)
        return members(out.read())


@pytest.mark.parametrize("path", ["/etc/sub", "etc/sub/", "dir/", "up/etc/sub"])
def test_get_a_folder(handle, path):
    found = [(member.name, member.link, content) for member, content in got(handle, path)]
    assert found == [
        (b"sub/", b"", b""), (b"sub/f", b"", b"F"), (b"sub/g", b"sub/f", b""),
    ]  # fmt: skip


def test_get_files_links_and_the_root(handle):
    [(found, content)] = got(handle, "up/etc/passwd")
    assert (found.name, content) == (b"passwd", b"root:x:0:0")
    [(found, _)] = got(handle, "etc/out")
    assert (found.kind, found.link) == (b"2", UP + b"canary")
    names = [member.name for member, _ in got(handle, "/")]
    assert names[0] == b"./"
    assert b"./etc/sub/g" in names
    for path in ("etc/missing", "missing/x", "etc/passwd/x"):
        with pytest.raises(FileNotFoundError):
            got(handle, path)


def test_get_does_not_care_about_marks(tree, handle):
    (tree / "etc/sub/.wh.x").touch()
    assert (b"sub/.wh.x", b"") in [(m.name, content) for m, content in got(handle, "etc/sub")]


def put(handle, into, data):
    stream = descriptor_of(data + END)
    try:
        return transfer.put(stream, handle, into, DEFAULT_BOUNDS)
    finally:
        os.close(stream)


@pytest.mark.parametrize("into", ["/etc/sub", "dir", "up/etc/sub/", "etc/sub/."])
def test_put_below_a_folder(tree, handle, into):
    done = put(handle, into, folder(b"new", 0o700) + file(b"new/x", b"1") + file(b".wh.f", b"2"))
    assert done.entries == 3
    assert listing(tree / "etc/sub") == [".wh.f", "f", "g", "new/", "new/x"]
    assert (tree / "etc/sub/new").stat().st_mode & 0o777 == 0o700


def test_put_replaces_and_never_writes_through(tree, handle):
    put(handle, "/etc", file(b"out", b"mine") + file(b"sub/f", b"new") + file(b"passwd/../x")[:0])
    assert (tree / "etc/out").read_text() == "mine"
    assert (tree / "etc/sub/g").read_text() == "F"
    assert (tree.parent / "canary").read_text() == "canary"


def test_put_resolves_links_in_the_root_not_in_the_folder(tree, handle):
    put(handle, "/etc/sub", symlink(b"l", b"/etc") + file(b"l/new", b"1") + hardlink(b"h", b"f"))
    assert (tree / "etc/new").read_text() == "1"
    assert (tree / "etc/sub/h").samefile(tree / "etc/sub/f")


def test_put_may_say_what_the_folder_itself_is(tree, handle):
    put(handle, "/dir", header(b".", b"5", mode=0o711, mtime=9))
    assert (tree / "etc/sub").stat().st_mtime == 9


def test_put_into_what_is_no_folder(handle):
    with pytest.raises(FileNotFoundError):
        put(handle, "/missing", file(b"x"))
    with pytest.raises(NotADirectoryError):
        put(handle, "/etc/passwd", file(b"x"))
    with pytest.raises(InvalidImage, match=r"the archive: '\.\./x'"):
        put(handle, "/etc", file(b"../x"))


def test_what_a_file_is(handle):
    found = transfer.look_at(handle, "/dir/f")
    assert (found["name"], found["size"], found["mtime"], found["link"]) == ("f", 1, 5 * 10**9, "")
    assert transfer.look_at(handle, "etc/out")["link"] == os.fsdecode(UP) + "canary"
    assert stat.S_ISDIR(transfer.look_at(handle, "/")["mode"])
    assert transfer.look_at(handle, "dir/")["name"] == "sub"
    with pytest.raises(FileNotFoundError):
        transfer.look_at(handle, "up/canary")


@pytest.fixture
def overlay(tmp_path):
    """The folders of an overlay with changes of every kind, as the kernel writes them."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    base = b"".join(folder(b"%s" % d, mtime=1) for d in (b"same", b"opaque", b"opaque/in", b"gone"))
    base += file(b"same/kept") + file(b"same/edited", b"1") + file(b"opaque/old") + file(b"gone/x")
    base += file(b"opaque/in/old") + file(b"opaque/both", b"1") + file(b"touched") + file(b"kind")
    base += symlink(b"link", b"a", mtime=1) + file(b"marked") + file(b"copied", b"c", mtime=1)
    base += file(b"copied-time", b"1" * 300_000)
    apply(lower, base)
    above = folder(b"same", 0o711, mtime=1) + file(b"same/edited", b"2") + file(b"same/new")
    above += folder(b"opaque", mtime=2) + file(b"opaque/both", b"2") + folder(b"opaque/in", mtime=1)
    above += file(b"touched", mtime=7) + folder(b"kind") + file(b"kind/x") + folder(b"made/deep")
    above += symlink(b"link", b"b", mtime=1) + file(b"marked") + file(b"copied", b"c", mtime=1)
    above += file(b"copied-time", b"1" * 299_999 + b"2")
    apply(upper, above)
    try:
        for name in ("gone", "same/kept", "never-there"):
            os.mknod(upper / name, 0o020000, 0)
    except PermissionError:
        pytest.skip("no whiteouts without privileges")
    os.setxattr(upper / "opaque", "user.overlay.opaque", b"y")
    os.setxattr(upper / "marked", "user.mark", b"1")
    return lower, upper


def test_changes_of_an_overlay(overlay):
    lower, upper = (os.open(path, os.O_RDONLY) for path in overlay)
    found = changes(upper, lower, DEFAULT_BOUNDS)
    os.close(lower)
    os.close(upper)
    assert found.added == ["/kind/x", "/made", "/made/deep", "/same/new"]
    assert found.changed == [
        "/copied-time", "/kind", "/link", "/marked", "/opaque/both", "/same", "/same/edited",
        "/touched",
    ]  # fmt: skip
    assert found.removed == ["/gone", "/opaque/in/old", "/opaque/old", "/same/kept"]


def test_no_changes(tmp_path):
    for name in ("lower", "upper"):
        apply(tmp_path / name, folder(b"d", mtime=1) + file(b"d/f", b"1", mtime=2))
    lower, upper = (os.open(tmp_path / name, os.O_RDONLY) for name in ("lower", "upper"))
    assert changes(upper, lower, DEFAULT_BOUNDS) == ([], [], [])
    os.close(lower)
    os.close(upper)


def test_removal_is_blind_to_links_and_to_depth(tmp_path, tree):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    parent = os.open(tmp_path, os.O_RDONLY)
    at = os.open(tree, os.O_RDONLY)
    for _ in range(6000):  # deeper than a path can say
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.symlink("../" * 30 + "canary", "link", dir_fd=below)
        os.close(at)
        at = below
    os.close(at)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, soft), hard))
    try:
        removal.remove_tree(parent, "tree")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]
    removal.remove_tree(parent, b"canary")
    with pytest.raises(FileNotFoundError):
        removal.remove_tree(parent, "canary")
    os.close(parent)


def test_folders_without_rights_are_removed(tmp_path):
    apply(tmp_path / "tree", folder(b"a") + file(b"a/b", b"1") + folder(b"a/c", 0o700))
    parent = os.open(tmp_path, os.O_RDONLY)
    removal.remove_tree(parent, "tree")
    os.close(parent)
    assert list(tmp_path.iterdir()) == []
