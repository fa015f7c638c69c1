"""Control groups from the texts of /proc, and what their files say of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.oci.cgroup_usage import Usage, read_usage
from pytest_sandbox.oci.cgroups import (
    Cgroups,
    GroupPaths,
    Hierarchy,
    Layout,
    find_cgroups,
    make,
    members,
    remove,
)

if TYPE_CHECKING:
    from pathlib import Path

_V1 = "30 25 0:26 / /sys/fs/cgroup/{0} rw,nosuid shared:5 - cgroup cgroup rw,{1}\n"


def _proc(folder: Path, cgroup: str, mountinfo: str) -> Path:
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(mountinfo)
    return folder


def test_hybrid_has_controllers_in_v1_and_a_tree_of_v2(tmp_path: Path) -> None:
    mounts = (
        "20 1 8:1 / / rw - ext4 /dev/vda rw\n"
        + _V1.format("memory", "memory")
        + _V1.format("cpu,cpuacct", "cpu,cpuacct")
        + _V1.format("systemd", "xattr,name=systemd")
        + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    own = "9:name=systemd:/a\n4:memory:/job/1\n2:cpu,cpuacct:/\n0::/a.scope\n"
    found = find_cgroups(_proc(tmp_path, own, mounts))
    assert found.layout is Layout.HYBRID
    assert set(found.controllers) == {"memory", "cpu", "cpuacct", "name=systemd"}
    assert found.controllers["memory"].own == "job/1"
    assert found.controllers["cpu"].mount == found.controllers["cpuacct"].mount
    assert found.unified is not None
    assert found.unified.own == "a.scope"
    paths = found.paths("x1")
    assert paths.engine_path == "/pytest-sandbox/x1"
    assert str(paths.controllers["memory"]) == "/sys/fs/cgroup/memory/pytest-sandbox/x1"
    assert len(paths.every) == 4
    assert not paths.exists()


def test_v1_alone_in_a_container_shows_its_own_part_of_the_tree(tmp_path: Path) -> None:
    mounts = "30 25 0:26 /docker/ab /sys/fs/cgroup/pi\\040ds ro - cgroup cgroup rw,pids\n"
    found = find_cgroups(_proc(tmp_path, "3:pids:/docker/ab/inner\n", mounts))
    assert found.layout is Layout.V1
    assert found.unified is None
    tree = found.controllers["pids"]
    assert (str(tree.mount), tree.own, tree.version) == ("/sys/fs/cgroup/pi ds", "inner", 1)


def test_v2_has_its_controllers_from_the_top(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    top.mkdir()
    (top / "cgroup.controllers").write_text("cpu io memory pids\n")
    mounts = f"25 1 0:23 / {top} rw - cgroup2 cgroup2 rw\n"
    own = "0::/user.slice/user-1000.slice/x.scope\n"
    found = find_cgroups(_proc(tmp_path, own, mounts))
    assert found.layout is Layout.V2
    assert set(found.controllers) == {"cpu", "io", "memory", "pids"}
    paths = found.below("user.slice/user-1000.slice").paths("x1")
    assert paths.engine_path == "/user.slice/user-1000.slice/pytest-sandbox/x1"
    assert paths.every == (top / "user.slice/user-1000.slice/pytest-sandbox/x1",)


@pytest.mark.parametrize(
    "mounts",
    ["20 1 8:1 / / rw - ext4 /dev/vda rw\n", _V1.format("systemd", "name=systemd")],
    ids=["nothing", "only systemd's own tree"],
)
def test_without_controllers_there_are_none(tmp_path: Path, mounts: str) -> None:
    assert find_cgroups(_proc(tmp_path, "1:name=systemd:/\n", mounts)).layout is Layout.NONE
    assert find_cgroups(tmp_path / "nowhere").layout is Layout.NONE


def _group(folder: Path, files: dict[str, str], controllers: tuple[str, ...], v2: bool) -> Usage:
    for name, text in files.items():
        (folder / name).write_text(text)
    unified = folder if v2 else None
    paths = GroupPaths("x", "/x", dict.fromkeys(controllers, folder), unified, (folder,))
    return read_usage(paths)


def test_use_of_v1(tmp_path: Path) -> None:
    files = {
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory.memsw.max_usage_in_bytes": "900\n",
        "memory.max_usage_in_bytes": "800\n",
        "memory.usage_in_bytes": "70\n",
        "pids.events": "max 3\n",
        "pids.current": "5\n",
        "cpuacct.usage": "2500000000\n",
        "blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 4096\n8:0 Sync 1\n"
        "8:16 Write 4\n8:16 Total 4\nTotal 4111\n",
    }
    used = _group(tmp_path, files, ("memory", "pids", "cpuacct", "blkio"), v2=False)
    assert used == Usage(2, 3, 5, 70, 900, 2.5, 4100)


def test_use_of_v2(tmp_path: Path) -> None:
    files = {
        "memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n",
        "memory.current": "70\n",
        "memory.peak": "80\n",
        "pids.events": "max 0\n",
        "pids.current": "1\n",
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n",
        "io.stat": "8:0 rbytes=1 wbytes=512 rios=1 wios=1 dbytes=0 dios=0\n254:0 \n8:16 wbytes=8\n",
    }
    used = _group(tmp_path, files, ("memory", "pids", "io"), v2=True)
    assert used == Usage(1, 0, 1, 70, 80, 1.5, 520)


def test_what_is_not_counted_is_none(tmp_path: Path) -> None:
    assert _group(tmp_path, {"memory.events": "oom_kill x\n"}, ("memory",), v2=True) == Usage()
    assert read_usage(GroupPaths("x", "/x", {}, None, ())) == Usage()


def test_members_and_remove_of_a_group_that_is_not_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    paths = GroupPaths("x", "/x", {"pids": gone}, None, (gone,))
    assert members(paths) == set()
    assert remove(paths, wait=0) == []
    assert Hierarchy(gone, 1).own == ""


def test_members_are_those_of_the_groups_below_too(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cgroup.procs").write_text("12\n0\n")
    (tmp_path / "a" / "b" / "cgroup.procs").write_text("13\n")
    paths = GroupPaths("a", "/a", {"pids": tmp_path / "a"}, None, (tmp_path / "a",))
    assert members(paths) == {12, 13}


def _delegated(top: Path, given: str, procs: str = "") -> Cgroups:
    """A tree of v2 with a group `user` in it, as systemd delegates one."""
    (top / "cgroup.controllers").write_text("cpu io memory pids\n")
    group = top / "user"
    group.mkdir()
    for name, text in (
        ("controllers", given), ("subtree_control", ""), ("procs", procs), ("type", "domain\n"),
    ):  # fmt: skip
        (group / f"cgroup.{name}").write_text(text)
    tree = Hierarchy(top, 2)
    names = (top / "cgroup.controllers").read_text().split()
    return Cgroups(Layout.V2, dict.fromkeys(names, tree), tree, "user")


def test_a_delegated_group_has_fewer_controllers_than_the_top(tmp_path: Path) -> None:
    """systemd gives users no `io`."""
    found = _delegated(tmp_path, "cpu memory pids\n")
    assert found.given() == {"cpu", "memory", "pids"}
    assert found.below("").given() == {"cpu", "io", "memory", "pids"}


def test_a_group_with_processes_is_not_made_a_threaded_one(tmp_path: Path) -> None:
    """The kernel would do that for `pids`, and then take no process below it."""
    found = _delegated(tmp_path, "cpu memory pids\n", procs="17\n")
    with pytest.raises(OSError, match="busy"):
        make(found, "x1", ["pids"])
    assert (tmp_path / "user" / "cgroup.subtree_control").read_text() == ""
