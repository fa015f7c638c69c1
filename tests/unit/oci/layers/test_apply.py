from __future__ import annotations

import os
import stat

import pytest

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS
from pytest_sandbox.oci.layers.apply import Ids
from tests.unit.oci.layers.archives import (
    apply,
    file,
    folder,
    hardlink,
    header,
    listing,
    pax,
    symlink,
    unpack_plain,
)

SECOND = 1_000_000_000


@pytest.fixture
def root(tmp_path):
    """A tree with one layer in it."""
    base = folder(b".", mtime=1) + folder(b"etc", 0o750, mtime=2) + file(b"etc/a", b"A", mtime=3)
    base += file(b"etc/b", b"B") + folder(b"etc/sub", mtime=4) + file(b"etc/sub/c", b"C")
    base += hardlink(b"etc/hard", b"etc/a") + symlink(b"link", b"etc", mtime=5)
    base += symlink(b"etc/abs", b"/etc/sub") + folder(b"var", mtime=6)
    apply(tmp_path / "root", base)
    return tmp_path / "root"


def names(root, below=""):
    return listing(root / below)


def test_modes_times_links_and_kinds(tmp_path):
    root = tmp_path / "root"
    told = pax((b"mtime", b"12.000000345"), (b"atime", b"13.5"))
    done = apply(
        root,
        folder(b"d", 0o1777, mtime=9)
        + told
        + file(b"d/setuid", b"x" * 5000, mode=0o6755)
        + header(b"d/fifo", b"6", mode=0o622, mtime=10)
        + header(b"d/null", b"3", mode=0o666, mtime=11)
        + header(b"d/loop", b"4", mode=0o660)
        + symlink(b"d/link", b"nowhere/\xff", mtime=-1 % 99)
        + hardlink(b"d/hard", b"d/setuid", mode=0, mtime=99),
    )
    assert (done.applied.entries, done.applied.devices) == (7, 2)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o1777
    found = (root / "d/setuid").stat()
    assert stat.S_IMODE(found.st_mode) == 0o6755
    assert (found.st_mtime_ns, found.st_atime_ns) == (12_000_000_345, 13_500_000_000)
    assert (root / "d/hard").stat().st_ino == found.st_ino
    fifo = (root / "d/fifo").stat()
    assert stat.S_ISFIFO(fifo.st_mode)
    assert (stat.S_IMODE(fifo.st_mode), fifo.st_mtime_ns) == (0o622, 10 * SECOND)
    null = (root / "d/null").stat()
    assert stat.S_ISREG(null.st_mode)
    assert (stat.S_IMODE(null.st_mode), null.st_size, null.st_mtime_ns) == (0o666, 0, 11 * SECOND)
    assert os.fsencode((root / "d/link").readlink()) == b"nowhere/\xff"
    assert (root / "d").stat().st_mtime_ns == 9 * SECOND


def test_a_folder_that_is_only_changed_keeps_what_it_is(root):
    apply(root, file(b"etc/new", b"n", mtime=50) + file(b"etc/sub/deep/er/x", b"x", mtime=51))
    etc, sub = (root / "etc").stat(), (root / "etc/sub").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_mtime_ns) == (0o750, 2 * SECOND)
    assert sub.st_mtime_ns == 4 * SECOND
    assert root.stat().st_mtime_ns == SECOND
    made = (root / "etc/sub/deep").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_mtime_ns) == (0o755, 51 * SECOND)


def test_a_listed_folder_replaces_what_it_is_and_keeps_what_is_in_it(root):
    os.setxattr(root / "etc", "user.old", b"1")
    os.setxattr(root / "etc", "user.kept", b"1")
    told = pax((b"SCHILY.xattr.user.kept", b"2"), (b"SCHILY.xattr.user.new", b"3"))
    apply(root, told + folder(b"etc", 0o2711, mtime=60))
    found = (root / "etc").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o2711, 60 * SECOND)
    marks = {name: os.getxattr(root / "etc", name) for name in os.listxattr(root / "etc")}
    assert {n: v for n, v in marks.items() if n.startswith("user.")} == {
        "user.kept": b"2", "user.new": b"3",
    }  # fmt: skip
    assert (root / "etc/a").read_text() == "A"


def test_a_whiteout_removes_a_file_a_folder_and_nothing_else(root):
    apply(root, file(b"etc/.wh.a") + file(b"etc/.wh.sub") + file(b"etc/.wh.missing"))
    assert names(root) == ["etc/", "etc/abs", "etc/b", "etc/hard", "link", "var/"]
    assert (root / "etc").stat().st_mtime_ns == 2 * SECOND
    assert (root / "etc/hard").read_text() == "A"


def test_a_whiteout_of_a_link_leaves_its_target(root):
    apply(root, file(b".wh.link"))
    assert "link" not in names(root)
    assert (root / "etc/a").exists()


def test_a_whiteout_may_stand_in_front_of_what_replaces_it_or_behind(root):
    for place, data in [("before", b"1"), ("behind", b"2")]:
        parts = [file(b"etc/.wh.a"), file(b"etc/a", data)]
        apply(root, b"".join(parts if place == "before" else parts[::-1]))
        assert (root / "etc/a").read_bytes() == data


def test_a_whiteout_behind_a_new_file_in_a_folder_removes_the_rest_of_it(root):
    apply(root, file(b"etc/sub/new", b"n") + file(b"etc/.wh.sub"))
    assert names(root, "etc/sub") == ["new"]
    assert (root / "etc/sub").stat().st_mtime_ns == 4 * SECOND


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("listed", [True, False])
def test_an_opaque_folder_hides_everything_below_but_its_own_siblings(root, place, listed):
    parts = [file(b"etc/sub/mine", b"m"), file(b"etc/own", b"o")]
    mark = file(b"etc/.wh..wh..opq")
    parts = [mark, *parts] if place == "first" else [*parts, mark]
    if listed:
        parts.insert(0, folder(b"etc", 0o700, mtime=70))
    apply(root, b"".join(parts))
    assert names(root, "etc") == ["own", "sub/", "sub/mine"]
    assert (root / "etc").stat().st_mtime_ns == (70 if listed else 2) * SECOND
    assert (root / "var").exists()


def test_an_opaque_root(root):
    apply(root, file(b"new", b"n") + file(b".wh..wh..opq"))
    assert names(root) == ["new"]
    assert root.stat().st_mtime_ns == SECOND


def test_marks_never_appear_and_do_nothing_in_the_first_layer(tmp_path):
    data = file(b"a", b"1") + file(b".wh.a") + file(b".wh..wh..opq") + file(b"gone/.wh.x")
    apply(tmp_path / "root", data)
    assert names(tmp_path / "root") == ["a"]
    apply(tmp_path / "root", file(b"gone/.wh.x") + file(b"a/b/.wh.x") + file(b".wh..wh.aufs"))
    assert names(tmp_path / "root") == ["a"]


def test_marks_mean_nothing_in_a_plain_archive(root):
    unpack_plain(root, file(b"etc/.wh.a", b"1") + file(b".wh.d/x", b"2"))
    assert (root / "etc/.wh.a").read_text() == "1"
    assert (root / ".wh.d/x").read_text() == "2"
    assert (root / "etc/a").read_text() == "A"


KINDS = {
    "file": lambda name: file(name, b"new"),
    "folder": folder,
    "link": lambda name: symlink(name, b"etc/b"),
    "fifo": lambda name: header(name, b"6"),
    "hard link": lambda name: hardlink(name, b"etc/b"),
}


@pytest.mark.parametrize("old", ["etc/a", "etc/sub", "link", "etc/abs", "var"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_replaces_every_kind(root, old, kind):
    apply(root, KINDS[kind](os.fsencode(old)))
    found = (root / old).lstat()
    wanted = {"folder": stat.S_ISDIR, "link": stat.S_ISLNK, "fifo": stat.S_ISFIFO}
    assert wanted.get(kind, stat.S_ISREG)(found.st_mode)
    assert (root / "etc/b").read_text() == "B"
    assert (root / "etc/hard").read_text() == "A"  # never written through
    if old != "etc/sub" or kind == "folder":
        assert (root / "etc/sub/c").exists()


def test_what_comes_after_a_replaced_folder_goes_where_it_leads_now(root):
    apply(
        root,
        file(b"etc/sub/x", b"1")
        + symlink(b"etc/sub", b"../var")
        + file(b"etc/sub/y", b"2")
        + file(b"etc/abs/z", b"3")
        + folder(b"etc/sub")
        + file(b"etc/sub/w", b"4"),
    )
    assert names(root, "var") == ["y", "z"]
    assert names(root, "etc/sub") == ["w"]


def test_parents_that_are_links_are_followed_inside_the_root(root):
    apply(root, file(b"link/new", b"1") + file(b"etc/abs/other", b"2") + file(b"link/abs/.wh.c"))
    assert (root / "etc/new").read_text() == "1"
    assert (root / "link").is_symlink()
    assert names(root, "etc/sub") == ["other"]
    assert (root / "etc").stat().st_mtime_ns == 2 * SECOND


def test_a_dangling_parent_is_made_where_it_leads(root):
    apply(root, symlink(b"dangling", b"/not/../there") + file(b"dangling/x", b"1"))
    assert (root / "there/x").read_text() == "1"


def test_a_listed_folder_over_a_link_replaces_the_link(root):
    apply(root, folder(b"link") + file(b"link/x", b"1"))
    assert not (root / "link").is_symlink()
    assert names(root, "link") == ["x"]


def test_of_the_same_name_twice_the_last_wins(tmp_path):
    data = file(b"a", b"1") + folder(b"a") + file(b"a/x") + file(b"./a", b"2", mode=0o600)
    apply(tmp_path / "root", data + file(b"/b", b"1") + file(b"b//", b"2"))
    assert names(tmp_path / "root") == ["a", "b"]
    assert (tmp_path / "root/a").read_text() == "2"
    assert (tmp_path / "root/b").read_text() == "2"


def test_hard_links_to_files_of_lower_layers_keep_what_they_are(root):
    before = (root / "etc/a").stat()
    apply(root, hardlink(b"var/a", b"/etc/a", mode=0o777, mtime=99) + hardlink(b"l", b"link/b"))
    found = (root / "var/a").stat()
    assert (found.st_ino, found.st_mode, found.st_mtime_ns) == (
        before.st_ino, before.st_mode, before.st_mtime_ns,
    )  # fmt: skip
    assert (root / "l").stat().st_ino == (root / "etc/b").stat().st_ino


def test_a_hard_link_to_a_link_is_the_link(root):
    apply(root, hardlink(b"copy", b"link"))
    assert (root / "copy").is_symlink()


def test_a_hard_link_to_itself_is_what_tar_writes_for_a_name_given_twice(root):
    apply(root, file(b"x", b"1") + hardlink(b"x", b"./x") + hardlink(b"link/a", b"etc/a"))
    assert (root / "x").read_text() == "1"
    assert (root / "etc/a").read_text() == "A"


KEPT = [
    b"A", b"a", "\u00e9".encode(), "e\u0301".encode(), b"back\\slash", b"tab\tnew\nline\x01\x7f",
    b"\xff\xfe", b" ", b"...", b"-rf", b"C:", b".wh", b"x.wh.y", b"CON", b"..a",
]  # fmt: skip


def test_odd_names_are_kept(tmp_path):
    apply(tmp_path / "root", b"".join(file(name, name) for name in KEPT))
    found = {os.fsencode(path.name) for path in (tmp_path / "root").iterdir()}
    assert found == set(KEPT)


def test_the_root_itself_may_be_listed(root):
    for name in (b".", b"./", b"/"):
        apply(root, header(name, b"5", mode=0o711, mtime=77))
        found = root.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o711, 77 * SECOND)
        root.chmod(0o755)


def test_a_root_that_is_not_listed_can_be_that_of_the_layer_below(root, tmp_path):
    below = os.open(root, os.O_RDONLY)
    apply(tmp_path / "new", file(b"x"), like=below)
    os.close(below)
    assert (tmp_path / "new").stat().st_mtime_ns == SECOND


def test_attributes_that_layers_do_not_bring_are_dropped(tmp_path):
    told = pax(
        (b"SCHILY.xattr.user.mine", b"1"),
        (b"SCHILY.xattr.user.overlay.opaque", b"y"),
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        (b"SCHILY.xattr.security.selinux", b"label"),
    )
    done = apply(tmp_path / "root", told + file(b"a") + told + folder(b"d"))
    for name in ("a", "d"):
        found = [n for n in os.listxattr(tmp_path / "root" / name) if n != "security.selinux"]
        assert found == ["user.mine"]
    assert done.applied.xattrs == 0


def test_attributes_that_cannot_be_set_are_counted_and_the_first_is_named(tmp_path):
    told = pax((b"SCHILY.xattr.user.a", b"1"))
    data = told + symlink(b"link", b"x") + told + header(b"fifo", b"6") + told + file(b"f")
    done = apply(tmp_path / "root", data)
    assert (done.applied.xattrs, done.applied.first_xattr) == (2, "link: user.a")
    assert os.getxattr(tmp_path / "root/f", "user.a") == b"1"


def test_nothing_is_inherited_from_where_the_tree_lies(tmp_path):
    """Default access control lists, and the group of a setgid folder."""
    root = tmp_path / "root"
    root.mkdir()
    acl = bytes.fromhex("02000000 01000700ffffffff 04000700ffffffff 20000700ffffffff")
    try:
        os.setxattr(root, "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("the file system has no access control lists")
    root.chmod(0o2755)
    done = apply(
        root, file(b"f", b"1", mode=0o640) + folder(b"d", 0o750) + file(b"i/x", mode=0o604)
    )
    assert done.applied.entries == 4
    for name, mode in [("f", 0o640), ("d", 0o750), ("i", 0o755), ("i/x", 0o604)]:
        assert stat.S_IMODE((root / name).stat().st_mode) == mode
        assert not [n for n in os.listxattr(root / name) if n.startswith("system.")]


def test_the_umask_means_nothing_and_is_left_alone(tmp_path):
    before = os.umask(0o077)
    try:
        apply(tmp_path / "root", file(b"f", mode=0o666) + folder(b"d", 0o777) + file(b"i/x"))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "root/f").stat().st_mode) == 0o666
    assert stat.S_IMODE((tmp_path / "root/d").stat().st_mode) == 0o777
    assert stat.S_IMODE((tmp_path / "root/i").stat().st_mode) == 0o755


def test_the_diff_id_is_checked(tmp_path):
    data = file(b"a", b"1")
    good = apply(tmp_path / "one", data)
    assert apply(tmp_path / "two", data, diff_id=good.diff_id).diff_id == good.diff_id
    with pytest.raises(InvalidImage, match=f"layer 1: .* {good.diff_id}, not sha256:0000"):
        apply(tmp_path / "three", data, diff_id="sha256:" + "0" * 64)


@pytest.mark.parametrize(
    ("member", "rule"),
    [
        (file(b"usr/x", uid=65536), "'usr/x': its uid 65536 is outside of the ids 0-65535"),
        (folder(b"usr", gid=70000), "'usr/': its gid 70000 is outside of the ids 0-65535"),
        (pax((b"uid", b"4294967295")) + file(b"x"), "uid 4294967295 is outside"),
    ],
)
def test_ids_outside_of_the_map_are_refused(tmp_path, member, rule):
    with pytest.raises(InvalidImage) as caught:
        apply(tmp_path / "root", member, ids=Ids(65536, 65536))
    assert caught.value.what.startswith("layer 1: ")
    assert rule in caught.value.what


def test_the_ids_of_links_and_marks_do_not_count(root):
    far = {"uid": 70000, "gid": 70000}
    data = hardlink(b"x", b"etc/a", **far) + file(b"etc/.wh.b", **far)
    apply(root, data, ids=Ids(65536, 65536))
    assert not (root / "etc/b").exists()


def test_more_folders_than_are_held_open(tmp_path):
    root = tmp_path / "root"
    many = [b"%03d" % number for number in range(400)]
    data = b"".join(folder(name, mtime=5) for name in many)
    data += b"".join(file(name + b"/sub/f", name, mtime=6) for name in many)
    data += b"".join(hardlink(name + b"/sub/g", b"000/sub/f") for name in many[1:])
    deep = b"/".join([b"d"] * 300)
    done = apply(root, data + pax((b"path", deep + b"/end")) + file(b"x", b"1"))
    assert done.applied.entries == 400 * 3 + 399 + 301
    for name in map(os.fsdecode, many):
        assert (root / name).stat().st_mtime_ns == 5 * SECOND
        assert (root / name / "sub").stat().st_mtime_ns == 6 * SECOND
    assert (root / os.fsdecode(deep) / "end").read_text() == "1"
    apply(root, file(b".wh.d") + b"".join(file(b".wh." + name) for name in many))
    assert names(root) == []


def test_the_bound_of_entries_counts_folders_that_had_to_be_made(tmp_path):
    bounds = DEFAULT_BOUNDS._replace(entries=4)
    apply(tmp_path / "a", file(b"1/2/3/f"), bounds=bounds)
    for data in (file(b"1/2/3/4/f"), b"".join(file(b"%d" % n) for n in range(5))):
        with pytest.raises(InvalidImage, match="more than 4 entries"):
            apply(tmp_path / "b", data, bounds=bounds)


def test_a_failure_names_layer_member_and_reason(tmp_path):
    with pytest.raises(InvalidImage) as caught:
        apply(
            tmp_path / "root",
            file(b"ok") + folder(b"d") + pax((b"path", b"d/" + b"n" * 300)) + file(b"x"),
        )
    assert "layer 1: 'd/nnn" in caught.value.what
    assert "File name too long" in caught.value.what
