"""The probe matrix: each lack of a host has a diagnosis of its own and a remedy."""

from __future__ import annotations

import os
import platform
import shutil

import pytest

from pytest_sandbox.oci import probes
from pytest_sandbox.oci.cgroup_access import LIMITS
from pytest_sandbox.oci.engines import find_engine, find_init
from pytest_sandbox.oci.findings import Lacking
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.store import Store
from pytest_sandbox.oci.supervisor import Supervisor
from tests.oci.hosts import Hosts
from tests.oci.requiring import missing, program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="hosts are made by root")


@pytest.fixture(autouse=True)
def _engine():
    try:
        find_engine()
        find_init()
    except Lacking as wrong:
        missing(wrong.what)


@pytest.fixture
def hosts():
    made = Hosts()
    yield made
    made.close()


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
def test_a_host_that_has_everything(hosts, user):
    found = hosts.probe(user=user, thorough=True)
    assert found.why_not is None
    for name in ("userns", "engine", "snapshotter"):
        assert found.findings[name]["ok"]
    assert found.host["engine"].startswith("/")
    assert found.host["init"].startswith("/")
    assert found.host["snapshotter"] == "overlay"
    if not user:
        assert {"memory", "pids", "cpu"} == set(found.host["limits"])


def test_what_was_found_is_kept_for_the_next_time(hosts):
    store = str(hosts.place / "one")
    first = hosts.probe(store=store)
    hidden = hosts.probe(hosts.hide("newuidmap"), store=store)  # another key: looked at again
    again = hosts.probe("umount -l /sys/fs/cgroup", store=store)
    assert hidden.host == first.host
    assert again.host["cgroups"] == "none"


_FENCE = """
import ctypes, os, struct, sys
refuse, allow = 0x50001, 0x7fff0000
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, UNSHARE), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
_READ_ONLY = """
for one in /sys/fs/cgroup/*
do
    if mountpoint -q $one; then mount -o remount,bind,ro $one; fi
done
mount -o remount,bind,ro /sys/fs/cgroup
"""
_OTHER_ROOT = """
for one in /*
do
    if [ -L $one ]; then cp -a $one PLACE/
    elif [ -d $one ]; then mkdir PLACE$one; mount --rbind $one PLACE$one
    fi
done
"""


def test_what_was_found_serves_without_trying_again(tmp_path, monkeypatch):
    supervisor = Supervisor(find_ids)
    store = Store(tmp_path / "store", supervisor)
    try:
        first = probes.probe_all(store)
    finally:
        supervisor.close()
    monkeypatch.setattr(probes, "_Look", None)
    for name in ("find_engine", "find_init", "try_cgroups"):
        monkeypatch.setattr(probes, name, None)
    engine, init, access = probes.probe_all(store).tools()
    assert (engine, init) == (find_engine(), find_init())
    assert access.usable == set(first.limits)
    assert set(access.lacking) == set(LIMITS) - access.usable
    with pytest.raises(Lacking, match="too bad") as wrong:
        probes.Host(findings=(probes.Finding("no-x", False, "too bad", "y", fatal=True),)).tools()
    assert wrong.value.problem == "no-x"


CASES = {
    # id: (user, what makes the host so, options, words of the remedy)
    "no-runc": (False, "hide runc crun", {}, "runc"),
    "no-init": (True, "hide tini-static docker-init", {}, "tini"),
    "no-newuidmap": (True, "hide newuidmap", {}, "uidmap"),
    "no-subuid": (True, "mount --bind /dev/null /etc/subuid", {}, "usermod --add-subuids"),
    "no-subgid": (True, "mount --bind /dev/null /etc/subgid", {}, "usermod --add-subgids"),
    "engine-hybrid": (False, "", {"engine": "crun"}, "runc"),
}


@pytest.mark.parametrize("problem", CASES)
def test_sandboxes_cannot_run_without_it(hosts, problem):
    user, setup, options, remedy = CASES[problem]
    if problem == "engine-hybrid":
        program("crun")
        if not os.path.ismount("/sys/fs/cgroup/unified"):
            pytest.skip("no hybrid control groups")
    if setup.startswith("hide "):
        setup = hosts.hide(*setup.split()[1:])
    found = hosts.probe(setup, user=user, **options)
    assert found.why_not == problem
    assert remedy in found.findings[problem]["next_step"]
    assert found.findings[problem]["what"]


def test_an_engine_that_hangs_or_is_old_is_not_used(hosts):
    runc = find_engine("runc").path
    for version, problem in (("1.3.4", "hanging-runc"), ("1.0.3", "old-runc")):
        fake = hosts.file(f"runc-{version}", f"#!/bin/sh\necho runc version {version}\n")
        found = hosts.probe(f"{hosts.hide('crun')}\nmount --bind {fake} {runc}")
        assert found.why_not == problem
        assert version in found.findings[problem]["what"]


def test_newuidmap_must_be_setuid(hosts):
    newuidmap = program("newuidmap", "uidmap")
    copy = hosts.place / "newuidmap"
    shutil.copyfile(newuidmap, copy)
    copy.chmod(0o755)
    found = hosts.probe(f"mount --bind {copy} {newuidmap}", user=True)
    assert found.why_not == "newuidmap-not-setuid"
    assert f"chmod u+s {newuidmap}" in found.findings[found.why_not]["next_step"]


def test_newuidmap_needs_privileges(hosts):
    program("setpriv", "util-linux")
    found = hosts.probe(user=True, inside="setpriv --no-new-privs")
    assert found.why_not == "newuidmap-no-new-privs"


def test_a_limit_of_user_namespaces(hosts):
    # The limit of a namespace holds for what is below it alone: the host's stays as it is.
    limit = hosts.file(
        "limit", '#!/bin/sh\necho 0 >/proc/sys/user/max_user_namespaces\nexec "$@"\n'
    )
    found = hosts.probe(user=True, inside=f"unshare -Urm {limit}")
    assert found.why_not == "userns-disabled"
    assert "user.max_user_namespaces" in found.findings[found.why_not]["next_step"]


def test_a_system_call_filter(hosts):
    number = {"x86_64": 272, "aarch64": 97}.get(platform.machine())
    if number is None:
        pytest.skip("the number of unshare is not known here")
    fence = hosts.file("fence.py", _FENCE.replace("UNSHARE", str(number)))
    found = hosts.probe(inside=f"{shutil.which('python3')} {fence}")
    assert found.why_not == "userns-blocked"
    assert "seccomp=unconfined" in found.findings[found.why_not]["next_step"]


def test_a_chroot(hosts):
    root = hosts.place / "root"
    root.mkdir()
    found = hosts.probe(_OTHER_ROOT.replace("PLACE", str(root)), inside=f"chroot {root}")
    assert found.why_not == "userns-chroot"


def test_a_masked_proc(hosts):
    found = hosts.probe(
        "mount -t tmpfs none /proc/acpi 2>/dev/null || mount -t tmpfs none /proc/fs"
    )
    assert found.why_not == "masked-proc"
    assert "systempaths=unconfined" in found.findings["masked-proc"]["next_step"]


def test_without_control_groups_sandboxes_run_unlimited(hosts):
    found = hosts.probe("umount -l /sys/fs/cgroup")
    assert "cgroup-none" in found.failed()
    assert found.host["limits"] == []


def test_control_groups_that_cannot_be_written(hosts):
    found = hosts.probe(_READ_ONLY)
    assert "cgroup-readonly" in found.failed()
    assert "writable /sys/fs/cgroup" in found.findings["cgroup-readonly"]["next_step"]


def test_a_network_needs_a_stack(hosts):
    found = hosts.probe(hosts.hide("slirp4netns", "pasta"))
    assert found.why_not is None
    assert found.host["network"] is False
    assert "slirp4netns" in found.findings["no-net-stack"]["next_step"]


def test_a_network_needs_the_tun_device(hosts):
    node = hosts.place / "tun"
    found = hosts.probe(
        f"mknod -m 0600 {node} c 10 200\nmount --bind {node} /dev/net/tun", user=True
    )
    assert found.why_not is None
    assert found.host["network"] is False
    assert "tun-no-access" in found.failed(), found.host
    assert "chmod 0666 /dev/net/tun" in found.findings["tun-no-access"]["next_step"]


# What the store lies on


def _mounted(hosts, options):
    (hosts.place / "fs").mkdir(exist_ok=True)
    return f"mount -t tmpfs {options} tmpfs {hosts.place}/fs", str(hosts.place / "fs" / "store")


def test_a_store_on_a_noexec_mount(hosts):
    setup, store = _mounted(hosts, "-o noexec")
    assert hosts.probe(setup, store=store).host["snapshotter"] == "overlay"  # it does not matter
    found = hosts.probe(setup, store=store, snapshotter="copy")
    assert found.why_not == "store-noexec"
    assert "noexec" in found.findings["store-noexec"]["next_step"]


def test_a_store_on_a_nosuid_mount(hosts):
    setup, store = _mounted(hosts, "-o nosuid")
    assert hosts.probe(setup, store=store).host["snapshotter"] == "overlay"
    assert hosts.probe(setup, store=store, snapshotter="copy").why_not == "store-nosuid"


def test_a_store_on_an_overlay_falls_back_and_says_why(hosts):
    place = hosts.place
    setup = (
        f"mkdir {place}/l {place}/u {place}/w {place}/m\n"
        f"mount -t overlay -o lowerdir={place}/l,upperdir={place}/u,workdir={place}/w o {place}/m"
    )
    found = hosts.probe(setup, store=str(place / "m" / "store"))
    assert found.why_not is None
    assert found.host["snapshotter"] in {"fuse-overlayfs", "reflink", "copy"}
    assert found.findings["snapshotter"]["what"].startswith(found.host["snapshotter"])
    assert "overlay: mount: Invalid argument" in found.findings["snapshotter"]["what"]
    assert "no-overlay" in found.failed()


def test_fuse_needs_its_device(hosts):
    node = hosts.place / "fuse"
    program("fuse-overlayfs")
    for mode, why in (("0600", "no-fuse-overlayfs"), ("0666", None)):
        found = hosts.probe(
            f"mknod -m {mode} {node}-{mode} c 10 229\nmount --bind {node}-{mode} /dev/fuse",
            user=True,
            snapshotter="fuse-overlayfs",
        )
        assert found.why_not == why
    missing = hosts.probe(hosts.hide("fuse-overlayfs"), snapshotter="fuse-overlayfs")
    assert "is not installed" in missing.findings["no-fuse-overlayfs"]["what"]


_V2 = "umount -l /sys/fs/cgroup\nmount -t cgroup2 cgroup2 /sys/fs/cgroup"


@pytest.mark.parametrize("engine", ["runc", "crun"])
@pytest.mark.parametrize(
    ("setup", "layout"),
    [("umount -l /sys/fs/cgroup/unified", "v1"), (_V2, "v2")],
    ids=["v1", "v2"],
)
def test_engines_run_on_other_layouts_of_control_groups(hosts, engine, setup, layout):
    program(engine)
    if not os.path.ismount("/sys/fs/cgroup/unified"):
        pytest.skip("the other layouts are made of hybrid ones")
    found = hosts.probe(setup, engine=engine)
    assert found.why_not is None
    assert found.host["cgroups"] == layout
    if layout == "v1":
        assert set(found.host["limits"]) == {"memory", "pids", "cpu"}
    else:  # v1 holds the controllers of this machine
        assert "cgroup-no-controller" in found.failed()
        assert found.host["limits"] == []
