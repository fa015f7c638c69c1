"""Control groups of this kernel: made, limited, killed, removed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.oci import cgroups as groups
from pytest_sandbox.oci.cgroup_access import LIMITS, Access, try_cgroups
from pytest_sandbox.oci.cgroup_usage import read_usage
from pytest_sandbox.oci.cgroups import Cgroups, Layout, find_cgroups
from tests.oci.requiring import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="groups of this machine are root's")
_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def access() -> Access:
    found = try_cgroups()
    if set(LIMITS) - found.usable:
        pytest.skip(f"{found.problem}: {found.what}")
    return found


@pytest.fixture
def group(access: Access) -> Iterator[tuple[Cgroups, groups.GroupPaths]]:
    paths = access.cgroups.paths(f"test-{secrets.token_hex(4)}")
    yield access.cgroups, paths
    groups.kill(paths)
    assert groups.remove(paths) == []
    access.cgroups.tidy()


def test_trying_leaves_nothing(access: Access) -> None:
    assert access.problem == ""
    assert not [name for name in access.cgroups.names() if name.startswith(f"probe-{os.getpid()}")]


def test_limits_hold_and_are_counted(group: tuple[Cgroups, groups.GroupPaths]) -> None:
    found, paths = group
    extra = [one for one in ("cpuacct", "blkio") if one in found.controllers]
    groups.make(found, paths.name, [*LIMITS, *extra])
    groups.limit(paths, memory=64 << 20, pids=8, cpus=0.5)
    # The shell waits to be attached, lets `tail` eat its memory up, then forks too often.
    script = "read go; head -c 200m /dev/zero | tail -c 150m >/dev/null; echo $?;"
    script += " for i in 1 2 3 4 5 6 7 8 9 10; do sleep 9 & done"
    shell = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    groups.attach(paths, shell.pid)
    assert shell.pid in groups.members(paths)
    assert paths.name in found.names()
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(b"go\n")
    shell.stdin.flush()
    assert shell.stdout.readline() == b"137\n"
    shell.wait(20)
    used = read_usage(paths)
    assert used.oom_kills == 1
    assert used.pids_refused is not None
    assert used.pids_refused >= 1
    assert used.memory_peak is not None
    assert 32 << 20 < used.memory_peak <= 65 << 20
    assert used.cpu_seconds is not None
    assert used.cpu_seconds > 0
    assert groups.members(paths)
    assert groups.kill(paths)
    assert groups.members(paths) == set()
    shell.communicate()


def test_a_fork_bomb_is_killed_without_cgroup_kill(
    group: tuple[Cgroups, groups.GroupPaths],
) -> None:
    found, paths = group
    if found.layout is Layout.V2:
        pytest.skip("one tree")
    groups.make(found, paths.name, ["pids"])
    groups.limit(paths, pids=100)
    only = groups.GroupPaths(
        paths.name, paths.engine_path, {"pids": paths.controllers["pids"]}, None, paths.every
    )
    bomb = subprocess.Popen(
        ["sh", "-c", "read go; b() { b | b & b; }; b"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    groups.attach(only, bomb.pid)
    bomb.communicate(b"go\n", timeout=30)
    assert groups.kill(only, wait=20)
    assert groups.members(paths) == set()


def test_kill_spares_who_is_not_in_the_group(group: tuple[Cgroups, groups.GroupPaths]) -> None:
    _, paths = group
    with subprocess.Popen(["sleep", "30"]) as other:
        groups._kill_member(paths, other.pid)
        assert other.poll() is None
        other.kill()


def test_removing_a_busy_group_gives_up_in_time(group: tuple[Cgroups, groups.GroupPaths]) -> None:
    found, paths = group
    groups.make(found, paths.name, ["pids"])
    with subprocess.Popen(["sleep", "30"]) as inside:
        groups.attach(paths, inside.pid)
        assert groups.remove(paths, wait=0.05)
        inside.kill()
    assert groups.remove(paths) == []


def test_a_process_puts_itself_into_the_groups_of_v1(
    group: tuple[Cgroups, groups.GroupPaths],
) -> None:
    found, paths = group
    if found.layout is Layout.V2:
        pytest.skip("no group of v1: a process is cloned into its group")
    paths = groups.make(found, paths.name, ["memory", "pids"])
    entrances = groups.entrances(paths)
    assert len(entrances) == len(set(paths.every) - {paths.unified})
    script = (
        "import sys; from pytest_sandbox.oci.cgroups import enter\n"
        "enter(map(int, sys.argv[1:])); print('in', flush=True); sys.stdin.read()"
    )
    inside = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, entrances)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=entrances,
    )
    for descriptor in entrances:
        os.close(descriptor)
    assert inside.stdout is not None
    assert inside.stdout.readline() == b"in\n"
    for controller in ("memory", "pids"):
        listed = (paths.controllers[controller] / "cgroup.procs").read_text().split()
        assert str(inside.pid) in listed
    inside.communicate()
    assert inside.returncode == 0


def test_an_unknown_controller_is_an_error(group: tuple[Cgroups, groups.GroupPaths]) -> None:
    _, paths = group
    bare = groups.GroupPaths(paths.name, paths.engine_path, {}, None, ())
    with pytest.raises(FileNotFoundError, match="no such controller"):
        groups.limit(bare, memory=1 << 20)


# The rules of v2 hold in a hybrid tree as well, for a controller that v1 does not use.


@pytest.fixture
def v2() -> Iterator[tuple[Cgroups, str]]:
    found = find_cgroups()
    if found.unified is None:
        pytest.skip("no v2 tree")
    listed = (found.unified.mount / "cgroup.controllers").read_text().split()
    domain = [one for one in listed if one in {"hugetlb", "io", "memory", "misc", "rdma"}]
    if not domain:
        pytest.skip("the v2 tree has no controller of domains")
    top = found.unified.mount / f"psb-test-{secrets.token_hex(4)}"
    top.mkdir()
    control = found.unified.mount / "cgroup.subtree_control"
    was_on = domain[0] in control.read_text().split()
    control.write_text(f"+{domain[0]}")
    tree = groups.Hierarchy(found.unified.mount, 2, f"{top.name}/own")
    yield Cgroups(Layout.V2, {domain[0]: tree}, tree, top.name), domain[0]
    for inner, _, _ in os.walk(top, topdown=False):
        Path(inner).rmdir()
    if not was_on:
        control.write_text(f"-{domain[0]}")


def test_v2_switches_controllers_on_from_the_base_down(v2: tuple[Cgroups, str]) -> None:
    found, controller = v2
    tried = try_cgroups(found, [controller])
    assert (tried.problem, tried.usable) == ("", frozenset([controller]))
    assert try_cgroups(found, [controller, "memory2"]).problem == "cgroup-no-controller"


def test_v2_with_processes_in_the_base_is_busy(v2: tuple[Cgroups, str]) -> None:
    found, controller = v2
    assert found.unified is not None
    with subprocess.Popen(["sleep", "30"]) as inside:
        (found.unified.mount / found.base / "cgroup.procs").write_text(str(inside.pid))
        tried = try_cgroups(found, [controller])
        inside.kill()
    assert tried.problem == "cgroup-busy"
    assert os.strerror(errno.EBUSY) in tried.what
    assert "DelegateSubgroup" in tried.next_step


def test_v2_below_a_threaded_group_says_so(v2: tuple[Cgroups, str]) -> None:
    found, controller = v2
    assert found.unified is not None
    inner = found.unified.mount / found.base / "threads"
    inner.mkdir()
    (inner / "cgroup.type").write_text("threaded")
    tried = try_cgroups(found.below(f"{found.base}/threads"), [controller])
    assert tried.problem == "cgroup-threaded"


_AS_USER = """
import json, sys
from pathlib import Path
from pytest_sandbox.oci.cgroup_access import try_cgroups
from pytest_sandbox.oci.cgroups import Cgroups, Hierarchy, Layout
if sys.argv[1:]:
    mount, base, own, controller = sys.argv[1:]
    tree = Hierarchy(Path(mount), 2, own)
    tried = try_cgroups(Cgroups(Layout.V2, {controller: tree}, tree, base), [controller])
else:
    tried = try_cgroups()
print(json.dumps([tried.problem, tried.cgroups.base, sorted(tried.usable), tried.next_step]))
"""


def _as_user(*arguments: str) -> list[str]:
    user = ["runuser", "-u", ordinary_user().pw_name, "--"]
    argv = [*user, "env", f"PYTHONPATH={_ROOT}", sys.executable]
    done = subprocess.run(
        [*argv, "-c", _AS_USER, *arguments], capture_output=True, text=True, check=True, cwd="/"
    )
    return list(json.loads(done.stdout))


def test_v2_for_a_user_needs_delegation(v2: tuple[Cgroups, str]) -> None:
    found, controller = v2
    assert found.unified is not None
    mount = found.unified.mount
    problem, _, usable, step = _as_user(str(mount), found.base, "", controller)
    assert (problem, usable) == ("cgroup-not-delegated", [])
    assert "systemd-run --user" in step
    # The session's group lies in a group that is the user's own, as under systemd.
    user, tree = ordinary_user(), mount / found.base
    for path in (tree, *(tree / name for name in ("cgroup.procs", "cgroup.subtree_control"))):
        os.chown(path, user.pw_uid, user.pw_gid)
    (tree / "x.scope").mkdir()
    own = tree / "x.scope" / "cgroup.procs"
    os.chown(own, user.pw_uid, user.pw_gid)
    (tree / "cgroup.subtree_control").write_text(f"+{controller}")
    before = Path("/proc/self/cgroup").read_text().splitlines()[-1].removeprefix("0::/")
    own.write_text("0")
    try:
        scope = f"{found.base}/x.scope"
        problem, base, usable, _ = _as_user(str(mount), "", scope, controller)
    finally:
        (mount / before / "cgroup.procs").write_text("0")
    assert (problem, base, usable) == ("", found.base, [controller])


def test_v1_cannot_be_handed_to_a_user() -> None:
    if find_cgroups().layout not in {Layout.V1, Layout.HYBRID}:
        pytest.skip("no v1 here")
    problem, _, usable, step = _as_user()
    assert (problem, usable) == ("cgroup-v1-user", [])
    assert "unified_cgroup_hierarchy" in step
