"""What the direct launcher takes of a runtime spec, and what it refuses by name."""

from __future__ import annotations

import copy

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.cgroups import Cgroups, Hierarchy, Layout
from pytest_sandbox.oci.config import parse_image_config
from pytest_sandbox.oci.ids import Range
from pytest_sandbox.oci.spec.generate import Overrides, generate
from pytest_sandbox.oci.spec.resources import ResourceLimits
from pytest_sandbox.oci.spec.root import Prepared
from pytest_sandbox.oci.spec.users import User
from pytest_sandbox.runtimes.oci.launchers.direct.profile import check, controllers, profile_of


def spec(**values):
    config = parse_image_config({"architecture": "amd64", "os": "linux", "config": {}})
    ids = [Range(0, 100000, 65536)]
    return copy.deepcopy(
        generate(
            config,
            Prepared(User(), {}),
            root="/rootfs",
            uid_map=ids,
            gid_map=ids,
            overrides=Overrides(argv=("true",), hostname="box"),
            limits=ResourceLimits(memory=64 << 20, cpus=1.5, pids=9),
            **values,
        )
    )


def changed(where, value):
    found = spec()
    *parents, last = where.split(".")
    part = found
    for name in parents:
        part = part[name]
    part[last] = value
    return found


def test_what_our_specs_hold_is_implemented():
    check(spec())
    check(spec(network="host", read_only=True, tmpfs={"/tmp": 1 << 20}))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("hooks", {"poststart": []}),
        ("process.apparmorProfile", "strict"),
        ("process.terminal", True),
        ("process.user.username", "app"),
        ("root.type", "x"),
        ("linux.intelRdt", {}),
        ("linux.rootfsPropagation", "shared"),
        ("linux.resources.hugepageLimits", []),
        ("linux.resources.memory.swappiness", 1),
        ("linux.resources.cpu.cpus", "0"),
        ("linux.resources.pids.soft", 1),
    ],
)
def test_what_is_not_is_refused_by_its_name(where, value):
    with pytest.raises(UsageError, match=f"does not implement {where}"):
        check(changed(where, value))


def test_fewer_namespaces_or_no_filter_are_refused():
    kinds = spec()["linux"]["namespaces"]
    for gone in ("user", "pid", "mount"):
        left = [one for one in kinds if one["type"] != gone]
        with pytest.raises(UsageError, match=f"without a {gone} namespace"):
            check(changed("linux.namespaces", left))
    joined = [{"type": "pid", "path": "/proc/1/ns/pid"}, *kinds]
    with pytest.raises(UsageError, match=r"linux\.namespaces"):
        check(changed("linux.namespaces", joined))
    without = spec()
    del without["linux"]["seccomp"]
    with pytest.raises(UsageError, match=r"linux\.seccomp"):
        check(without)
    devices = [{"allow": True, "access": "rwm"}]
    with pytest.raises(UsageError, match=r"linux\.resources\.devices"):
        check(changed("linux.resources.devices", devices))
    mounts = [{"destination": "/x", "type": "nfs", "source": "h:/", "options": []}]
    with pytest.raises(UsageError, match="a mount of type nfs"):
        check(changed("mounts", mounts))


def groups(tmp_path):
    names = ("memory", "pids", "cpu", "cpuset")
    trees = {name: Hierarchy(tmp_path / name, 1) for name in names}
    return Cgroups(Layout.HYBRID, trees, Hierarchy(tmp_path / "unified", 2))


USER = {"uid": 0, "gid": 0, "groups": [], "home": "/root"}


def profile(one, cgroups, filters):
    return profile_of(one, USER, cgroups, filters, guarded=True)


def test_the_profile_of_a_spec(tmp_path):
    found = profile(spec(), groups(tmp_path), tmp_path)
    assert found.limits == {"memory": 64 << 20, "pids": 9, "cpus": 1.5}
    assert found.hierarchies == (("memory", "memory"), ("pids", "pids"), ("cpu", "cpu"))
    assert found.unified == "unified"
    assert found.network
    assert found.uids == ((0, 100000, 65536),)
    assert {one["destination"] for one in found.mounts} >= {"/proc", "/dev", "/sys", "/dev/shm"}
    assert controllers(groups(tmp_path)) == ["memory", "pids", "cpu"]
    again = profile(spec(), groups(tmp_path), tmp_path)
    assert again.key == found.key
    assert profile(spec(network="host"), groups(tmp_path), tmp_path).key != found.key
    assert profile(spec(), None, tmp_path).limits == {}, "no group, no limits of it"
