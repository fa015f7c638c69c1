"""Mounts of a sandbox: their order, what takes whose place, and what each kind may hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.config import parse_image_config
from pytest_sandbox.oci.etc_files import (
    account_binds,
    account_text,
    engine_binds,
    hosts_text,
    resolv_text,
    write_files,
)
from pytest_sandbox.oci.ids import Range
from pytest_sandbox.oci.spec.generate import generate
from pytest_sandbox.oci.spec.mounts import Bind
from pytest_sandbox.oci.spec.resources import ResourceLimits, resources, rlimits
from pytest_sandbox.oci.spec.root import Prepared
from pytest_sandbox.oci.spec.users import User

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM = ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm"]


def spec_of(places: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    config = parse_image_config(
        {"config": {"Cmd": ["sh"], "Volumes": {key: {} for key in more.pop("volumes", ())}}}
    )
    fixed: dict[str, Any] = {
        "root": "/r",
        "uid_map": [Range(0, 100000, 65536)],
        "gid_map": [Range(0, 100000, 65536)],
        "architecture": "amd64",
        "kernel": "6.1.0",
    }
    return generate(config, Prepared(User(), places or {}), **{**fixed, **more})


def targets(spec: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in spec["mounts"]]


def mount_at(spec: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = [mount for mount in spec["mounts"] if mount["destination"] == target]
    return dict(found)


def test_outer_folders_come_first() -> None:
    binds = [Bind("/s", "/a/b/c"), Bind("/s", "/a"), Bind("/s", "/dev/.init", folder=False)]
    found = targets(spec_of(mounts=binds, tmpfs={"/a/b": 1 << 20}))
    assert found == [*SYSTEM, "/a", "/a/b", "/dev/.init", "/a/b/c"]


def test_a_mount_of_the_caller_takes_a_place() -> None:
    mine = [Bind("/s", "/etc/hosts", folder=False), Bind("/s", "/dev/shm")]
    spec = spec_of(mounts=mine, engine_files=engine_binds("/e"))
    assert mount_at(spec, "/etc/hosts")["source"] == "/s"
    assert mount_at(spec, "/dev/shm")["type"] == "bind"
    assert mount_at(spec, "/etc/hostname")["source"] == "/e/hostname"


def test_devices_of_the_caller() -> None:
    found = targets(spec_of(mounts=[Bind("/dev", "/dev")]))
    assert found == ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]


def test_the_same_target_twice() -> None:
    with pytest.raises(UsageError, match="two mounts at /a"):
        spec_of(mounts=[Bind("/s", "/a"), Bind("/t", "/a/")])
    with pytest.raises(UsageError, match="two mounts at /real"):
        spec_of({"/a": "/real"}, mounts=[Bind("/s", "/a"), Bind("/t", "/real")])


def test_mounts_go_where_the_root_really_has_them() -> None:
    spec = spec_of({"/var/run/x": "/run/x"}, mounts=[Bind("/s", "/var/run/x")])
    assert mount_at(spec, "/run/x")["options"] == ["rbind", "rprivate", "ro"]


def test_volumes_stay_writable_under_a_read_only_root() -> None:
    places = {"/data": "/data", "/link/v": "/there/v"}
    volumes = ["/data", "/link/v"]
    assert targets(spec_of(places, volumes=volumes)) == SYSTEM
    spec = spec_of(places, volumes=volumes, read_only=True)
    assert spec["root"] == {"path": "/r", "readonly": True}
    assert mount_at(spec, "/there/v") == {
        "destination": "/there/v",
        "type": "bind",
        "source": "/r/there/v",
        "options": ["rbind", "rprivate", "rw"],
    }
    mine = spec_of(places, volumes=volumes, read_only=True, mounts=[Bind("/s", "/data")])
    assert mount_at(mine, "/data")["source"] == "/s"


def test_network_modes() -> None:
    for mode in ("none", "bridge"):
        spec = spec_of(network=mode)
        assert {"type": "network"} in spec["linux"]["namespaces"]
        assert mount_at(spec, "/sys")["type"] == "sysfs"
        assert spec["linux"]["sysctl"]["net.ipv4.ping_group_range"] == "0 65535"
    host = spec_of(network="host")
    assert {"type": "network"} not in host["linux"]["namespaces"]
    assert {"type": "user"} in host["linux"]["namespaces"]
    assert mount_at(host, "/sys")["options"][0] == "rbind"
    assert "rro" in mount_at(host, "/sys")["options"]
    assert "sysctl" not in host["linux"]


def test_terminals_have_their_group_only_where_it_is_mapped() -> None:
    assert "gid=5" in mount_at(spec_of(), "/dev/pts")["options"]
    single = spec_of(uid_map=[Range(0, 1000, 1)], gid_map=[Range(0, 1000, 1)])
    assert not any(o.startswith(("gid=", "uid=")) for m in single["mounts"] for o in m["options"])
    assert single["linux"]["sysctl"]["net.ipv4.ping_group_range"] == "0 0"


def test_init_goes_in_front() -> None:
    spec = spec_of(init=("/dev/.init", "-p", "SIGKILL", "--"))
    assert spec["process"]["args"] == ["/dev/.init", "-p", "SIGKILL", "--", "sh"]


def test_binds_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    found = Bind.of("file", "/t", read_only=False)
    assert (found.source, found.folder, found.read_only) == (str(tmp_path / "file"), False, False)
    assert Bind.of(tmp_path, "/t").folder
    with pytest.raises(UsageError, match=r"cannot mount .*gone: No such file"):
        Bind.of("gone", "/t")


def test_locked_options_are_kept() -> None:
    found = Bind.of("/proc", "/t")
    flags = os.statvfs("/proc").f_flag
    assert ("noexec" in found.locked) == bool(flags & os.ST_NOEXEC)
    assert found.entry()["options"] == ["rbind", "rprivate", "ro", *found.locked]


def test_tmpfs_has_a_size() -> None:
    spec = spec_of(tmpfs={"/scratch": 1 << 20})
    assert mount_at(spec, "/scratch")["options"] == ["nosuid", "nodev", "mode=1777", "size=1048576"]
    with pytest.raises(UsageError, match="tmpfs of 0 bytes"):
        spec_of(tmpfs={"/scratch": 0})


def test_limits_become_cgroup_fields() -> None:
    assert resources(ResourceLimits()) == {"devices": [{"allow": False, "access": "rwm"}]}
    found = resources(ResourceLimits(memory=1 << 30, cpus=1.5, pids=64, nofile=99))
    assert found["memory"] == {"limit": 1 << 30, "swap": 1 << 30}
    assert found["cpu"] == {"quota": 150_000, "period": 100_000}
    assert found["pids"] == {"limit": 64}
    assert resources(ResourceLimits(memory=1 << 30), swap=False)["memory"] == {"limit": 1 << 30}


@pytest.mark.parametrize(
    "limits",
    [
        ResourceLimits(memory=1 << 20),
        ResourceLimits(cpus=0.001),
        ResourceLimits(pids=0),
        ResourceLimits(memory=1 << 63),
        ResourceLimits(cpus=1e9),
        ResourceLimits(pids=99_999_999),
    ],
)
def test_limits_that_no_kernel_takes(limits: ResourceLimits) -> None:
    with pytest.raises(UsageError, match="limit of"):
        resources(limits)


def test_open_files() -> None:
    def nofile(limits: ResourceLimits, hard: int) -> tuple[int, int]:
        (found,) = rlimits(limits, hard_nofile=hard)
        return found["soft"], found["hard"]

    assert nofile(ResourceLimits(), 1 << 20) == (1024, 524_288)
    assert nofile(ResourceLimits(), 20_000) == (1024, 20_000)
    assert nofile(ResourceLimits(), 512) == (512, 512)
    assert nofile(ResourceLimits(), -1) == (1024, 524_288)
    assert nofile(ResourceLimits(nofile=64), 20_000) == (64, 64)
    assert nofile(ResourceLimits(nofile=65_536), 20_000) == (20_000, 20_000)
    extra = rlimits(ResourceLimits(), {"RLIMIT_AS": 5}, hard_nofile=64)
    assert extra[1] == {"type": "RLIMIT_AS", "soft": 5, "hard": 5}


def test_no_cgroup_for_a_limit_that_needs_one() -> None:
    spec = spec_of(rootless=True, cgroups_path="/x")
    assert "resources" not in spec["linux"]
    assert "cgroupsPath" not in spec["linux"]
    with pytest.raises(UsageError, match="no cgroup for memory, pids"):
        spec_of(rootless=True, limits=ResourceLimits(memory=1 << 30, pids=5))


def test_ids_need_a_map() -> None:
    with pytest.raises(UsageError, match="no id map for users"):
        spec_of(uid_map=[])


HOST = "search a.example\nnameserver 127.0.0.53\nnameserver 192.0.2.1\noptions ndots:2\n# x\n"


def test_resolv_conf() -> None:
    assert resolv_text("host", HOST) == HOST
    assert "nameserver" not in resolv_text("none", HOST)
    rest = "search a.example\noptions ndots:2\n"
    assert resolv_text("bridge", HOST) == "nameserver 192.0.2.1\n" + rest
    assert resolv_text("bridge", HOST, ["10.0.2.3"]) == "nameserver 10.0.2.3\n" + rest
    with pytest.raises(UsageError, match="own loopback"):
        resolv_text("bridge", "nameserver 127.0.0.1\nnameserver ::1\n")
    with pytest.raises(UsageError, match="no host name"):
        resolv_text("bridge", HOST, ["1.1.1.1\nnameserver 2.2.2.2"])


def test_hosts() -> None:
    lines = hosts_text("box", "10.0.2.100", [("registry", "10.0.2.2")]).splitlines()
    assert lines[0].split() == ["127.0.0.1", "localhost"]
    assert lines[-2].split() == ["10.0.2.2", "registry"]
    assert lines[-1].split() == ["10.0.2.100", "box"]
    with pytest.raises(UsageError, match="no host name"):
        hosts_text("box", "", [("a\n6.6.6.6 b", "1.2.3.4")])


def test_account_files_for_an_image_without_any(tmp_path: Path) -> None:
    user = User(1000, 1001, (), "/", "")
    paths = ["/etc/passwd", "/etc/group"]
    write_files(tmp_path, {path: account_text(path, user) for path in paths})
    assert "user:x:1000:1001:user:/:/bin/sh" in (tmp_path / "passwd").read_text().splitlines()
    assert "user:x:1001:" in (tmp_path / "group").read_text().splitlines()
    (one, two) = account_binds(str(tmp_path), paths)
    assert (one.source, one.target, two.target) == (f"{tmp_path}/passwd", *paths)
    assert account_text("/etc/passwd", User()).count("\n") == 2
    assert oct((tmp_path / "passwd").stat().st_mode) == "0o100644"
