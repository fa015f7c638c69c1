"""Bundles that real runtimes run, unchanged: what the spec says is what is found inside.

By root, and by an ordinary user too.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.oci.bundle import BundleOptions, ContainerBundle
from pytest_sandbox.oci.config import parse_image_config
from pytest_sandbox.oci.sources import DirectorySource
from pytest_sandbox.oci.spec.generate import Overrides
from pytest_sandbox.oci.spec.mounts import Bind
from pytest_sandbox.oci.spec.resources import ResourceLimits
from tests.oci.bundles.conftest import ROOT
from tests.oci.bundles.schema import violations

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.oci.supervisor.client import Supervisor
    from tests.oci.bundles.conftest import Engine


class Maker:
    """Makes bundles from one root, each with a shell script as its command."""

    def __init__(self, root: Path, place: Path, supervisor: Supervisor) -> None:
        self.root = root
        self.place = place
        self.supervisor = supervisor

    def make(
        self, script: str, image: dict[str, Any] | None = None, **options: Any
    ) -> ContainerBundle:
        config = parse_image_config(
            {"os": "linux", "config": {"Cmd": ["sh", "-c", script], **(image or {})}}
        )
        chosen = BundleOptions(**options)
        source = DirectorySource(self.root, self.supervisor, config, chosen)
        bundle = source.prepare(self.place / f"bundle-{os.urandom(4).hex()}")
        assert violations(bundle.spec) == []
        return bundle


@pytest.fixture
def maker(tiny_root: Path, place: Path, supervisor: Supervisor) -> Maker:
    return Maker(tiny_root, place, supervisor)


def test_identity(engine: Engine, maker: Maker) -> None:
    bundle = maker.make(
        "id; pwd; cat /proc/self/uid_map; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status",
        # runc lets an ordinary user set no supplementary groups
        {"User": "app" if ROOT else "app:app", "WorkingDir": "/w/deep"},
    )
    done = engine.run(bundle)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("uid=1000(app) gid=1000(app)")
    assert ("groups=44(video)" in lines[0]) == ROOT
    assert lines[1] == "/w/deep"
    ids = maker.supervisor.ids
    for entry in ids.uids:
        assert [str(number) for number in entry] == lines.pop(2).split()
    status = dict(line.split(":\t") for line in lines[2:])
    assert status["CapBnd"] == "00000000a80425fb"
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "2")
    assert bundle.rootfs.stat().st_uid == ids.root[0] != 0


def test_root_inside(engine: Engine, maker: Maker) -> None:
    script = "id; grep CapEff /proc/self/status; touch /x; chown 1000 /x; stat -c %u /x; ulimit -n"
    bundle = maker.make(script, overrides=Overrides(no_new_privileges=True))
    done = engine.run(bundle)
    assert done.stdout.startswith("uid=0(root) gid=0(root)")
    assert "CapEff:\t00000000a80425fb" in done.stdout
    assert done.stdout.splitlines()[2:] == ["1000", "1024"]
    app = (bundle.rootfs / "x").stat().st_uid
    assert app == (ids := maker.supervisor.ids).uids[-1].outside + 1000 - ids.uids[-1].inside


def test_argv_env_and_status(engine: Engine, maker: Maker) -> None:
    words = ["a  b", "", "'\"\\", "ü ☃\tx\ny"]
    script = 'for word; do printf "<%s>" "$word"; done; env >&2; exit 7'
    bundle = maker.make(
        "",
        {"Env": ["A=1", "EMPTY=", "LINES=x\ny"], "Entrypoint": ["sh", "-c", script, "-"]},
        overrides=Overrides(argv=words, env=["A=2", "B=ü"], hostname="box"),
    )
    done = engine.run(bundle)
    assert done.returncode == 7
    assert done.stdout == "".join(f"<{word}>" for word in words)
    env = done.stderr.splitlines()
    assert {"A=2", "B=ü", "EMPTY=", "HOSTNAME=box", "HOME=/root", "LINES=x", "y"} <= set(env)
    assert any(line.startswith("PATH=/usr/local/sbin:") for line in env)


def test_files_of_the_engine(engine: Engine, maker: Maker) -> None:
    (maker.root / "etc/resolv.conf").symlink_to("../run/resolve/stub")
    script = (
        "hostname; cat /etc/hostname /etc/hosts; cat /etc/resolv.conf; echo more >> /etc/hosts;"
        " echo $?; ls -l /etc/resolv.conf"
    )
    bundle = maker.make(
        script,
        network="bridge",
        nameservers=["192.0.2.53"],
        extra_hosts=[("registry", "192.0.2.7")],
        overrides=Overrides(hostname="box"),
    )
    done = engine.run(bundle)
    assert done.stdout.splitlines()[:2] == ["box", "box"]
    assert "192.0.2.7\tregistry" in done.stdout
    assert "127.0.0.1\tbox" in done.stdout
    assert "nameserver 192.0.2.53" in done.stdout
    assert done.stdout.splitlines()[-2] == "0"
    assert "-> ../run/resolve/stub" in done.stdout
    assert (bundle.rootfs / "run/resolve/stub").read_bytes() == b""


def test_image_without_accounts(engine: Engine, maker: Maker) -> None:
    (maker.root / "etc/passwd").unlink()
    (maker.root / "etc/group").unlink()
    done = engine.run(maker.make("id; cat /etc/passwd", {"User": "4242:4243"}))
    assert done.stdout.startswith("uid=4242(user) gid=4243(user)")


def test_what_is_denied(engine: Engine, maker: Maker) -> None:
    """Masked and read-only paths, system calls of the profile, devices, the outer network."""
    script = """
    cat /proc/keys 2>/dev/null | wc -c; ls /sys/firmware | wc -l
    for path in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/x /sys/fs/cgroup/cpu/x; do
        (echo x > $path) 2>/dev/null && echo wrote $path
    done
    mount -t tmpfs none /tmp 2>/dev/null && echo mounted
    unshare -U true 2>/dev/null && echo unshared
    cat /dev/null && echo null; ls /sys/class/net
    """
    done = engine.run(maker.make(script))
    assert done.stdout.split() == ["0", "0", "null", "lo"]


def test_mounts(engine: Engine, maker: Maker, tmp_path: Path) -> None:
    shared = maker.place / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "file").write_text("of the host\n")
    shared.chmod(0o755)
    script = """
    cat /run/in/file; touch /run/in/x 2>/dev/null || echo read-only
    cat /one; touch /scratch/x && echo scratch
    grep -cE ' (/scratch|/run/in|/one|/dev/shm) ' /proc/mounts
    grep ' /dev/shm ' /proc/mounts
    """
    (maker.root / "run").mkdir()
    (maker.root / "var").mkdir()
    (maker.root / "var/run").symlink_to("../run")
    binds = [Bind.of(shared, "/var/run/in"), Bind.of(shared / "file", "/one", read_only=False)]
    done = engine.run(maker.make(script, mounts=binds, tmpfs={"/scratch": 1 << 20}))
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:5] == ["of the host", "read-only", "of the host", "scratch", "4"]
    assert "size=65536k" in lines[5]


def test_volumes_and_a_read_only_root(engine: Engine, maker: Maker) -> None:
    script = "cat /data/seed; touch /data/x && echo writes; touch /y 2>/dev/null || echo read-only"
    volumes = {"Volumes": {"/data": {}, "/fresh/volume": {}}}
    done = engine.run(maker.make(script, volumes, read_only=True))
    assert done.stdout.split() == ["seed", "writes", "read-only"]
    again = engine.run(maker.make("touch /fresh/volume/x && ls /fresh/volume", volumes))
    assert again.stdout.split() == ["x"]


def test_network_of_the_host(engine: Engine, maker: Maker) -> None:
    script = "ls /sys/class/net; (echo x > /sys/kernel/mm/ksm/run) 2>/dev/null && echo wrote"
    done = engine.run(maker.make(script, network="host"))
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == sorted(name for _, name in socket.if_nameindex())


def test_unprivileged_ports_and_pings(engine: Engine, maker: Maker) -> None:
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
    done = engine.run(maker.make(script))
    assert done.stdout.split() == ["0", "0", str(maker.supervisor.ids.size - 1)]


@pytest.mark.skipif(not ROOT, reason="an ordinary user has no cgroup here")
def test_limits(engine: Engine, maker: Maker) -> None:
    script = """
    cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max
    cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max
    cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us || cat /sys/fs/cgroup/cpu.max
    ulimit -n; ulimit -H -n
    """
    limits = ResourceLimits(memory=64 << 20, pids=33, cpus=0.5, nofile=77)
    group = f"/pytest-sandbox-tests-{os.urandom(4).hex()}"
    done = engine.run(maker.make(script, limits=limits, cgroups_path=group))
    assert done.stdout.split()[:3] == [str(64 << 20), "33", "50000"]
    assert done.stdout.split()[-2:] == ["77", "77"]


def test_init_in_front(engine: Engine, maker: Maker, busybox: Path) -> None:
    """Here busybox plays the init: `init -- command` is `env -- command`."""
    init = Bind(str(busybox), "/dev/busybox", folder=False)
    done = engine.run(
        maker.make(
            "cat /proc/1/comm; ls -l /dev/busybox | wc -l",
            init=["/dev/busybox", "env", "--"],
            init_files=[init],
        )
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["sh", "1"]
    assert not (maker.root / "dev").exists()


def test_names_that_the_seccomp_library_does_not_know(engine: Engine, maker: Maker) -> None:
    """Profiles name calls that are younger than the host's libseccomp: they are passed over."""
    bundle = maker.make("echo ok")
    spec = bundle.spec
    spec["linux"]["seccomp"]["syscalls"][0]["names"].append("call_of_the_next_century")
    (bundle.path / "config.json").write_text(json.dumps(spec))
    done = engine.run(bundle)
    assert (done.returncode, done.stdout) == (0, "ok\n")


def test_fifos_in_the_place_of_files(engine: Engine, maker: Maker) -> None:
    """Nothing waits for them: neither what makes the bundle nor what runs it."""
    for name in ("hosts", "resolv.conf", "passwd", "group"):
        (maker.root / "etc" / name).unlink(missing_ok=True)
        os.mkfifo(maker.root / "etc" / name)
    done = engine.run(maker.make("cat /etc/resolv.conf; id -u", {"User": "1000:1000"}))
    assert done.stdout.splitlines() == ["# this sandbox has no network", "1000"]
