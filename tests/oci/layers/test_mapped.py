"""Layers in the ids of sandboxes: jobs of a real supervisor, as root and as an ordinary user."""

from __future__ import annotations

import os
import tempfile

import pytest

from pytest_sandbox.errors import InvalidImage
from pytest_sandbox.oci.ids import NoIds, find_ids
from pytest_sandbox.oci.supervisor import Supervisor
from tests.oci.layers.stacks import CAPABILITY
from tests.oci.requiring import missing
from tests.unit.oci.layers.archives import END, descriptor_of, file, folder, members, pax, symlink

JOBS = "pytest_sandbox.oci.layers.jobs"


@pytest.fixture(scope="module")
def supervisor():
    try:
        ids = find_ids()
    except NoIds as lacking:
        missing(lacking.what)
    found = Supervisor(ids)
    yield found
    found.close()


@pytest.fixture
def tree(supervisor, tmp_path):
    """A folder that belongs to the root of sandboxes, open."""
    (tmp_path / "tree").mkdir()
    found = os.open(tmp_path / "tree", os.O_RDONLY | os.O_DIRECTORY)
    if os.geteuid() == 0:
        os.fchown(found, *find_ids().root)
    yield found
    os.close(found)
    parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    where = "host" if os.geteuid() == 0 else "mapped"
    supervisor.call(f"{JOBS}:remove", {"names": ["tree", "gone"]}, [parent], where=where)
    os.close(parent)
    assert list(tmp_path.iterdir()) == []


def apply(supervisor, tree, data, **args):
    stream = descriptor_of(data + END)
    try:
        return supervisor.call(f"{JOBS}:apply", {"layer": "layer 1", **args}, [stream, tree])
    finally:
        os.close(stream)


def host_id(number, ranges):
    for found in ranges:
        if found.inside <= number < found.inside + found.size:
            return found.outside + number - found.inside
    raise AssertionError


def test_owners_modes_and_capabilities_inside_the_map(supervisor, tree, tmp_path):
    marks = pax(
        (b"SCHILY.xattr.security.capability", CAPABILITY), (b"SCHILY.xattr.user.a", b"1"),
        (b"SCHILY.xattr.trusted.b", b"2"),
    )  # fmt: skip
    data = folder(b"d", 0o2750, uid=0, gid=1000) + marks + file(b"d/f", b"x", uid=1000, gid=65534)
    data += file(b"d/setuid", b"y", mode=0o6755, uid=0, gid=0) + symlink(b"l", b"d", uid=7, gid=8)
    told = apply(supervisor, tree, data)
    assert (told["entries"], told["xattrs"], told["first_xattr"]) == (4, 1, "d/f: trusted.b")
    ids = find_ids()
    for name, uid, gid in [("d", 0, 1000), ("l", 7, 8)]:
        found = os.stat(name, dir_fd=tree, follow_symlinks=False)
        assert (found.st_uid, found.st_gid) == (host_id(uid, ids.uids), host_id(gid, ids.gids))
    with tempfile.TemporaryFile() as out:
        supervisor.call(f"{JOBS}:get", {"path": "/d"}, [out.fileno(), tree])
        out.seek(0)
        seen = {member.name: member for member, _ in members(out.read())}
    assert (seen[b"d/"].mode, seen[b"d/"].gid) == (0o2750, 1000)
    assert (seen[b"d/setuid"].mode, seen[b"d/setuid"].uid) == (0o6755, 0)
    assert (seen[b"d/f"].uid, seen[b"d/f"].gid) == (1000, 65534)
    assert seen[b"d/f"].xattrs == {"security.capability": CAPABILITY, "user.a": b"1"}


def test_ids_outside_of_the_map_are_refused_by_name(supervisor, tree):
    size = find_ids().size
    with pytest.raises(InvalidImage) as caught:
        apply(supervisor, tree, file(b"usr/x", uid=size, gid=0))
    wanted = f"layer 1: 'usr/x': its uid {size} is outside of the ids 0-{size - 1}"
    assert caught.value.what == wanted
    told = apply(supervisor, tree, file(b"usr/x", uid=size - 1, gid=size - 1))
    assert told["entries"] == 2


def test_jobs_on_a_tree(supervisor, tree):
    apply(supervisor, tree, folder(b"d", uid=0, gid=0) + file(b"d/f", b"x", uid=5, gid=5))
    stream = descriptor_of(file(b"g", b"new", uid=6, gid=6) + END)
    put = supervisor.call(f"{JOBS}:put", {"into": "/d"}, [stream, tree])
    os.close(stream)
    assert put["entries"] == 1
    assert supervisor.call(f"{JOBS}:stat", {"path": "/d/g"}, [tree])["uid"] == 6
    with pytest.raises(FileNotFoundError):
        supervisor.call(f"{JOBS}:stat", {"path": "/d/h"}, [tree])
    with tempfile.TemporaryFile() as out:
        args = {"overlay": False, "pack": "zstd"}
        told = supervisor.call(f"{JOBS}:diff", args, [tree, out.fileno()])
        assert told["packed"] == os.fstat(out.fileno()).st_size
    assert supervisor.call(f"{JOBS}:changes", {}, [tree, tree]) == {
        "added": [], "changed": [], "removed": [],
    }  # fmt: skip
    assert supervisor.call(f"{JOBS}:remove", {"names": ["d", "x"]}, [tree]) == {"removed": 1}
