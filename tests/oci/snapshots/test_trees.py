"""Every snapshotter shows the same tree, and none lets a sandbox change a stored layer."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.snapshots.base import ALL, SnapshotterFailed, find_snapshotter
from pytest_sandbox.oci.snapshots.digests import tree_digest
from pytest_sandbox.oci.snapshots.overlay import MOST_LAYERS, empty, open_layers
from pytest_sandbox.oci.snapshots.trees import copy_tree
from tests.oci.requiring import fuse_overlayfs, program
from tests.oci.snapshots.apart import Failed, apart, folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and owners are root's")
WHEN = (1_600_000_000_123_456_789, 1_500_000_000_987_654_321)
NAMES = ["overlay", "fuse-overlayfs", "reflink", "copy", "hardlink"]


def _finish(path, mode, uid=0, gid=0):
    """Owner, mode and times, in the order that keeps them."""
    os.chown(path, uid, gid, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)
    os.utime(path, ns=WHEN, follow_symlinks=False)


def _file(path, text, mode=0o644, uid=0, gid=0):
    path.write_text(text)
    _finish(path, mode, uid, gid)


def _common(root):
    """What both ways of storing have in the lowest layer."""
    root.mkdir()
    _file(root / "plain", "plain\n", 0o640, 1000, 1001)
    _file(root / "setuid", "#!/bin/sh\n", 0o6755, 7, 8)
    _file(root / "tab\tand \N{SNOWMAN} \\ back", "odd name")
    (root / "link").symlink_to("plain")
    _finish(root / "link", 0, 5, 6)
    (root / "dangling").symlink_to("/no/such/place")
    _finish(root / "dangling", 0)
    os.mkfifo(root / "pipe")
    _finish(root / "pipe", 0o622, 3, 4)
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(8 << 20)
        sparse.seek(3 << 20)
        sparse.write(b"in the middle")
    os.setxattr(root / "sparse", "user.note", b"\x00\xff")
    _finish(root / "sparse", 0o600)
    os.setxattr(
        root / "plain",
        "security.capability",
        bytes.fromhex("0100000200040000000000000000000000000000"),
    )
    (root / "below").mkdir()
    _file(root / "below" / "file", "below\n" * 10000)
    os.link(root / "below" / "file", root / "twin")


def _whole(root):
    """The tree that all of them must show."""
    _common(root)
    _file(root / "replaced", "of the second layer", 0o600)
    (root / "cleared").mkdir()
    _file(root / "cleared" / "only", "left")
    _finish(root / "cleared", 0o1777)
    _finish(root / "below", 0o2750, 9, 9)
    _finish(root, 0o751, 0, 12)


def _low(root):
    _common(root)
    _file(root / "replaced", "of the first layer, and longer", 0o755, 2, 2)
    _file(root / "gone", "not to be seen")
    (root / "cleared").mkdir()
    _file(root / "cleared" / "hidden", "not to be seen")
    _finish(root / "below", 0o2750, 9, 9)
    root.chmod(0o700)


def _top(root):
    root.mkdir()
    _file(root / "replaced", "of the second layer", 0o600)
    os.mknod(root / "gone", stat.S_IFCHR, os.makedev(0, 0))
    (root / "cleared").mkdir()
    _file(root / "cleared" / "only", "left")
    os.setxattr(root / "cleared", "user.overlay.opaque", b"y")
    _finish(root / "cleared", 0o1777)
    _finish(root, 0o751, 0, 12)


def _btrfs(place):
    """A file system that can share data, for reflink; mounted for the caller's namespace alone."""
    mkfs = program("mkfs.btrfs", "btrfs-progs")
    image = place / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run([mkfs, "-q", image], check=True)
    return image


@pytest.fixture
def stored(tmp_path, request):
    """Run `work(place, snapshotter, lowers, upper, room)` in a namespace where they can be had."""

    def run(name, work):
        snapshotter = find_snapshotter(name)
        if name == "fuse-overlayfs":
            fuse_overlayfs()
        image = _btrfs(tmp_path) if name == "reflink" else None

        def prepared():
            place = tmp_path / "place"
            place.mkdir()
            if image:
                subprocess.run(["mount", "-o", "loop", image, place], check=True)
            if snapshotter.layered:
                _low(place / "low")
                _top(place / "top")
                stack = [folder(place / "low"), folder(place / "top")]
            else:
                _whole(place / "low")
                stack = [folder(place / "low")]
            for part in ("upper", "room", "target"):
                (place / part).mkdir()
            upper, room = folder(place / "upper"), folder(place / "room")
            snapshotter.prepare(stack, upper)
            return work(place, snapshotter, stack, upper, room)

        return apart(prepared)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tree(name, stored, tmp_path):
    _whole(tmp_path / "expected")
    expected = tree_digest(folder(tmp_path / "expected"))

    def work(place, snapshotter, stack, upper, room):
        target = str(place / "target")
        snapshotter.mount(stack, upper, room, target, read_only=not snapshotter.writable)
        first = tree_digest(folder(target))
        snapshotter.unmount(target, room)
        snapshotter.mount(stack, None, None, target)
        return [first, tree_digest(folder(target))]

    assert stored(name, work) == [expected, expected]


def test_the_digest_sees_every_difference(tmp_path):
    _whole(tmp_path / "tree")
    tree, seen = tmp_path / "tree", set()

    def note():
        digest = tree_digest(folder(tree))
        assert digest not in seen
        seen.add(digest)

    note()
    (tree / "plain").chmod(0o641)
    note()
    os.chown(tree / "link", 5, 7, follow_symlinks=False)
    note()
    os.setxattr(tree / "sparse", "user.note", b"\x00")
    note()
    os.utime(tree / "below", ns=(0, 1))
    note()
    (tree / "twin").unlink()
    shutil.copy2(tree / "below" / "file", tree / "twin")
    note()
    (tree / "pipe").unlink()
    note()


def _names(path):
    return sorted(found.name for found in Path(path).iterdir())


def _write(target, name):
    """Every kind of change, as a program makes them."""
    with (target / "plain").open("a") as file:
        file.write("more")
    os.truncate(target / "sparse", 5)
    (target / "setuid").chmod(0o600)
    (target / "replaced").rename(target / "renamed")
    if name != "fuse-overlayfs":  # its copy of a pipe is EIO, and it tells parted links late
        os.chown(target / "pipe", 77, 77)
        with (target / "below" / "file").open("r+") as file:
            file.write("BELOW")
    os.setxattr(target / "renamed", "user.new", b"1")
    (target / "link").unlink()
    shutil.rmtree(target / "cleared")
    (target / "cleared").mkdir()
    os.utime(target / "tab\tand \N{SNOWMAN} \\ back", ns=(5, 5))
    target.chmod(0o700)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hardlink"])
def test_writing_never_changes_a_stored_layer(name, stored):
    def work(place, snapshotter, stack, upper, room):
        before = [tree_digest(one) for one in stack]
        target = place / "target"
        snapshotter.mount(stack, upper, room, str(target), volatile=True)
        _write(target, name)
        changed = tree_digest(folder(target), times=False)
        snapshotter.unmount(str(target), room)
        assert _names(place / "room") == []
        snapshotter.settle(upper)
        # What the sandbox wrote is still there when the same upper is mounted again ...
        snapshotter.mount(stack, upper, room, str(target), volatile=True)
        assert tree_digest(folder(target), times=False) == changed
        snapshotter.unmount(str(target), room)
        snapshotter.settle(upper)
        # ... and when it has become a layer.
        whole = [*stack, upper] if snapshotter.layered else [upper]
        snapshotter.mount(whole, None, None, str(target))
        assert tree_digest(folder(target), times=False) == changed
        with pytest.raises(OSError, match="Read-only"):
            (target / "plain").write_text("x")
        assert [tree_digest(one) for one in stack] == before
        return [(target / "plain").read_text(), _names(target / "cleared")]

    assert stored(name, work) == ["plain\nmore", []]


def test_hard_links_are_for_read_only_roots_alone(stored):
    def work(place, snapshotter, stack, upper, room):
        assert (place / "upper" / "plain").samefile(place / "low" / "plain")
        target = place / "target"
        with pytest.raises(SnapshotterFailed, match="must be read-only"):
            snapshotter.mount(stack, upper, room, str(target))
        snapshotter.mount(stack, upper, room, str(target), read_only=True)
        refused = []
        for change in (
            lambda: (target / "plain").open("a"),
            lambda: os.truncate(target / "plain", 0),
            lambda: (target / "plain").chmod(0o777),
            lambda: (target / "plain").rename(target / "other"),
        ):
            with pytest.raises(OSError, match="Read-only") as wrong:
                change()
            refused.append(wrong.value.errno)
        return refused

    assert stored("hardlink", work) == [errno.EROFS] * 4


def test_a_file_system_without_reflinks_says_so(tmp_path):
    _whole(tmp_path / "low")
    (tmp_path / "upper").mkdir()
    linked = subprocess.run(
        ["cp", "--reflink=always", tmp_path / "low" / "twin", tmp_path / "other"],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    if linked.returncode == 0:
        pytest.skip("this one has them")
    low, upper = folder(tmp_path / "low"), folder(tmp_path / "upper")
    with pytest.raises(SnapshotterFailed, match="cannot reflink") as wrong:
        find_snapshotter("reflink").prepare([low], upper)
    assert "btrfs or XFS" in wrong.value.next_step


def test_holes_stay_holes(tmp_path):
    _whole(tmp_path / "low")
    (tmp_path / "copy").mkdir()
    count = copy_tree(folder(tmp_path / "low"), folder(tmp_path / "copy"))
    assert count == 13
    found = (tmp_path / "copy" / "sparse").stat()
    assert found.st_size == 8 << 20
    assert found.st_blocks * 512 < 1 << 20


def _stack(place, count):
    names = []
    for number in range(count):
        name = f"layer, {number}: a\\b" if number < 3 else f"{number:03}"
        (place / name).mkdir(parents=True)
        (place / name / f"file{number}").write_text(str(number))
        (place / name / "who").write_text(str(number))
        names.append(name)
    return names


@pytest.mark.parametrize("count", [1, 2, 127, MOST_LAYERS])
def test_many_layers(count, tmp_path):
    names = _stack(tmp_path / "layers", count)

    def work():
        lowers = open_layers(folder(tmp_path / "layers"), names)
        for part in ("upper", "work", "target"):
            (tmp_path / part).mkdir()
        overlay, target = find_snapshotter("overlay"), tmp_path / "target"
        overlay.mount(
            lowers,
            folder(tmp_path / "upper"),
            folder(tmp_path / "work"),
            str(target),
            volatile=True,
        )
        (target / "new").write_text("x")
        first = [len(_names(target)), (target / "who").read_text(), str(Path.cwd())]
        overlay.unmount(str(target), folder(tmp_path / "work"))
        overlay.mount(lowers, None, None, str(target))
        return [*first, len(_names(target))]

    assert apart(work) == [count + 2, str(count - 1), str(Path.cwd()), count + 1]


def test_too_many_layers_are_an_error_that_says_how_many(tmp_path):
    overlay = find_snapshotter("overlay")
    lowers = [0] * (MOST_LAYERS + 1)
    with pytest.raises(SnapshotterFailed, match="1 to 500 layers, this one has 501") as wrong:
        overlay.mount(lowers, None, None, str(tmp_path))
    assert "squash" in wrong.value.next_step
    with pytest.raises(SnapshotterFailed, match="has 0"):
        overlay.mount([], None, None, str(tmp_path))


@pytest.mark.parametrize("name", ["overlay", "fuse-overlayfs"])
def test_an_upper_folder_needs_a_work_folder(name, tmp_path):
    if name == "fuse-overlayfs":
        fuse_overlayfs()
    (tmp_path / "low").mkdir()
    low = folder(tmp_path / "low")
    with pytest.raises(ValueError, match="work folder"):
        find_snapshotter(name).mount([low], low, None, str(tmp_path))


def test_a_folder_that_is_another_one_here_is_refused(tmp_path):
    (tmp_path / "low").mkdir()
    (tmp_path / "target").mkdir()
    low = folder(tmp_path / "low")

    def work():
        linux.mount("tmpfs", tmp_path, "tmpfs")
        (tmp_path / "low").mkdir()
        (tmp_path / "target").mkdir()
        find_snapshotter("copy").mount([low], None, None, str(tmp_path / "target"))

    with pytest.raises(Failed, match="another folder is at this path"):
        apart(work)


def test_device_nodes_of_a_tree_do_not_work(stored):
    def work(place, snapshotter, stack, upper, room):
        target = place / "target"
        os.mknod(place / "upper" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        snapshotter.mount(stack, upper, room, str(target))
        with pytest.raises(PermissionError):
            (target / "null").open("w")
        return True

    assert stored("copy", work)


def test_fuse_ends_with_whoever_mounted_it(stored):
    def work(place, snapshotter, stack, upper, room):
        snapshotter.mount(stack, upper, room, str(place / "target"))
        ours = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        return [[word, Path(f"/proc/{word}/comm").read_text()] for word in ours]

    left = stored("fuse-overlayfs", work)
    assert [comm for _, comm in left] == ["fuse-overlayfs\n"]
    for word, _ in left:
        for _ in range(200):
            status = Path(f"/proc/{word}/stat")
            if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            subprocess.run(["sleep", "0.02"], check=True)
        else:
            pytest.fail("fuse-overlayfs goes on")


def test_empty_removes_what_overlayfs_leaves(tmp_path):
    (tmp_path / "work" / "work" / "incompat").mkdir(parents=True)
    (tmp_path / "work" / "work" / "incompat" / "volatile").touch()
    (tmp_path / "work" / "work").chmod(0)
    (tmp_path / "work" / "file").touch()
    (tmp_path / "work" / "link").symlink_to("file")
    empty(folder(tmp_path / "work"))
    assert _names(tmp_path / "work") == []


def test_an_unknown_snapshotter_is_a_usage_error():
    with pytest.raises(UsageError, match="'zfs' is no snapshotter") as wrong:
        find_snapshotter("zfs")
    assert "overlay" in wrong.value.next_step
    assert set(ALL) == set(NAMES)
