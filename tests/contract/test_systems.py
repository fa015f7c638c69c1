"""The system around the commands: network, files, changes, snapshots, statistics, its end."""

from __future__ import annotations

import io
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import ImageUnavailable, SandboxGone, SandboxTimeout, UnknownUser
from pytest_sandbox.runtimes.base import Changes, Mount
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from tests.contract.conftest import RUN

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.base import Result, Runtime, System


def sh(system: System, script: str, **keywords: object) -> Result:
    return system.run(["sh", "-c", script], **keywords)  # type: ignore[arg-type]


def packed(files: dict[str, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o640
            tar.addfile(member, io.BytesIO(data))
    out.seek(0)
    return out


def devices(system: System) -> list[str]:
    lines = sh(system, "cat /proc/net/dev").stdout.splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def test_no_network_by_default(system: System):
    assert devices(system) == ["lo"]


def test_bridge_does_not_reach_the_hosts_loopback(start: Callable[..., System]):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        system = start(network="bridge")
        assert len(devices(system)) == 2
        # bash speaks TCP by itself; 127.0.0.1 inside is the sandbox's own.
        gateway = sh(
            system,
            "while read -r i d g r; do case $d in 00000000) echo $g;; esac; done </proc/net/route",
        ).stdout.strip()
        assert len(gateway) == 8
        router = ".".join(str(int(gateway[i : i + 2], 16)) for i in (6, 4, 2, 0))
        for address in ("127.0.0.1", router):
            script = f"exec 3<>/dev/tcp/{address}/{port}"
            result = system.run(["bash", "-c", script], timeout=10)
            assert result.returncode != 0


def test_sandboxes_do_not_see_each_other(start: Callable[..., System]):
    one, two = start(network="bridge"), start(network="bridge")
    address = sh(one, "tail -1 /etc/hosts").stdout.split()[0]
    if sh(two, "tail -1 /etc/hosts").stdout.split()[0] == address:
        # Each has a network of its own, with the same address: there is no way to the other.
        spaces = [sh(system, "readlink /proc/self/ns/net").stdout for system in (one, two)]
        assert len(set(spaces)) == 2
        assert not address.startswith("127.")
        return
    # A closed port that is reached refuses at once; one that is not reached is silent.
    result = system_connect(two, address)
    assert "refused" not in result.stderr.lower()
    own = system_connect(one, address)
    assert "refused" in own.stderr.lower()


def system_connect(system: System, address: str) -> Result:
    try:
        return system.run(["bash", "-c", f"exec 3<>/dev/tcp/{address}/9"], timeout=3)
    except SandboxTimeout as exc:
        return exc.result


def test_a_snapshot_may_have_another_network(start: Callable[..., System], runtime: Runtime):
    name = start().snapshot()
    try:
        other = start(image=name, network="bridge")
        assert len(devices(other)) == 2
        other.close()
    finally:
        runtime.remove_image(name)


def test_host_network(start: Callable[..., System]):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        system = start(network="host")
        script = (
            f"if command -v bash; then bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'; "
            f"else nc -w 2 127.0.0.1 {port} </dev/null; fi && echo reached"
        )
        assert sh(system, script, timeout=10).stdout.endswith("reached\n")


def test_no_new_privileges(start: Callable[..., System]):
    line = "NoNewPrivs:\t%d\n"
    assert line % 1 in sh(start(no_new_privileges=True), "cat /proc/self/status").stdout
    assert line % 0 in sh(start(), "cat /proc/self/status").stdout


def test_mounts_are_read_only_unless_said_otherwise(start: Callable[..., System], tmp_path: Path):
    (tmp_path / "file").write_text("from the host")
    writable = tmp_path / "writable"
    writable.mkdir(mode=0o777)
    writable.chmod(0o777)
    system = start(mounts=(Mount(tmp_path, "/given"), Mount(writable, "/out", read_only=False)))
    assert sh(system, "cat /given/file").stdout == "from the host"
    assert sh(system, "echo x >/given/file").returncode != 0
    assert sh(system, "echo x >/out/file").returncode == 0
    assert (writable / "file").read_text() == "x\n"
    assert system.changes() == Changes()


def test_tmpfs(start: Callable[..., System]):
    system = start(tmpfs={"/scratch": 1 << 20})
    assert sh(system, "head -c 500000 /dev/zero >/scratch/a").ok
    assert sh(system, "head -c 5000000 /dev/zero >/scratch/b").returncode != 0
    assert system.changes() == Changes()


def test_user_of_the_whole_sandbox(start: Callable[..., System]):
    system = start(user="nobody")
    assert system.run(["id", "-un"]).stdout == "nobody\n"
    assert system.run(["cat"], input=b"for nobody").stdout == "for nobody"
    assert system.run(["id", "-un"], user="root").stdout == "root\n"


def test_an_unknown_user_of_the_whole_sandbox(start: Callable[..., System]):
    with pytest.raises(UnknownUser, match="nosuchuser"):
        start(user="nosuchuser")


def test_a_missing_image(start: Callable[..., System]):
    with pytest.raises(ImageUnavailable, match="no/such-image"):
        start(image="no/such-image:1")


def test_a_fresh_sandbox_has_no_changes(start: Callable[..., System]):
    system = start()
    assert system.changes() == Changes()
    system.run(["true"], input=b"x")
    assert system.changes() == Changes()


def test_changes(start: Callable[..., System]):
    system = start()
    sh(
        system,
        "mkdir -p /opt/new/sub; echo 1 >/opt/new/sub/file; echo >>/etc/passwd; rm /etc/issue",
    )
    sh(system, "chmod 700 /srv; ln -s file /opt/new/sub/link; echo z >/root/b; echo a >/root/a")
    found = system.changes()
    assert found.added == (
        *("/opt/new", "/opt/new/sub", "/opt/new/sub/file", "/opt/new/sub/link"),
        *("/root/a", "/root/b"),
    )
    assert found.changed == ("/etc/passwd", "/srv")
    assert found.removed == ("/etc/issue",)


def test_put_and_get(system: System):
    big = os.urandom(3 << 20)
    system.put(packed({"sub/one": b"1", "big": big}), "/tmp")
    assert sh(system, "cat /tmp/sub/one; stat -c %a /tmp/big").stdout == "1640\n"
    found, chunks = system.get("/tmp/big")
    assert (found.name, found.size) == ("big", len(big))
    assert stat.S_ISREG(found.mode)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        member = tar.extractfile("big")
        assert member is not None
        assert member.read() == big
    found, chunks = system.get("/tmp/sub")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert tar.getnames() == ["sub", "sub/one"]


def test_put_and_get_of_what_is_missing(system: System):
    with pytest.raises(FileNotFoundError, match="/no/such"):
        system.get("/no/such")
    with pytest.raises(FileNotFoundError, match="/no/such"):
        system.put(packed({"a": b""}), "/no/such")
    with pytest.raises(NotADirectoryError):
        system.put(packed({"a": b""}), "/etc/passwd")
    assert system.stat("/no/such") is None


def test_stat(system: System):
    sh(
        system,
        "mkdir -p /tmp/s; printf 12345 >/tmp/s/f; chmod 4711 /tmp/s/f; ln -sf ../s/f /tmp/s/l",
    )
    sh(system, "ln -sfn nowhere /tmp/s/broken; chmod 1777 /tmp/s")
    found = system.stat("/tmp/s/f")
    assert found is not None
    assert (found.name, found.size, found.mode) == ("f", 5, stat.S_IFREG | 0o4711)
    folder = system.stat("/tmp/s")
    assert folder is not None
    assert folder.mode == stat.S_IFDIR | 0o1777
    link = system.stat("/tmp/s/l")
    assert link is not None
    assert stat.S_ISLNK(link.mode)
    assert link.link == "../s/f"
    broken = system.stat("/tmp/s/broken")
    assert broken is not None
    assert broken.link == "nowhere"


def test_snapshot_starts_others(start: Callable[..., System], runtime: Runtime):
    first = start(env={"ONLY": "first"})
    sh(first, "echo content >/opt/file")
    name = first.snapshot()
    second, third = start(image=name), start(image=name)
    assert sh(second, "cat /opt/file").stdout == "content\n"
    assert second.changes() == Changes()
    assert "ONLY" not in second.run(["env"]).stdout
    sh(second, "rm /opt/file")
    assert sh(third, "cat /opt/file").stdout == "content\n"
    assert sh(first, "cat /opt/file").stdout == "content\n"
    assert name in {image.name for image in runtime.images()}
    second.close()
    third.close()
    runtime.remove_image(name)
    assert runtime.find_image(name) is None
    runtime.remove_image(name)


def test_snapshot_with_a_name_outlives_its_run(start: Callable[..., System], runtime: Runtime):
    name = f"tsuku/sandbox-test:{RUN}"
    run = RUN + "-other"
    system = start(run)
    assert system.snapshot(name=name, labels={"org.pytest-sandbox.kept": "1"}) == name
    try:
        other = system.snapshot()
        system.close()
        runtime.sweep(RUN + "-another")
        assert runtime.find_image(other) is not None
        runtime.reap(lambda owner, _created: owner.run == run)
        assert runtime.find_image(other) is None
        found = runtime.find_image(name)
        assert found is not None
        assert found.labels["org.pytest-sandbox.kept"] == "1"
    finally:
        runtime.remove_image(name)


def test_stats(start: Callable[..., System]):
    system = start()
    began = time.monotonic()
    sh(system, "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
    took = time.monotonic() - began
    # One process: it cannot have used more time than has passed.
    assert 0.01 < system.stats().cpu_seconds < took * 1.2 + 0.1
    sh(system, "head -c 60m /dev/zero | tail -c 50m | wc -c")
    found = system.stats()
    assert 40 << 20 < found.memory_peak < 2 << 30
    assert found.bytes_written >= 0


def test_close_twice_and_use_after_it(start: Callable[..., System], runtime: Runtime):
    system = start()
    assert system.alive()
    system.close()
    system.close()
    assert not system.alive()
    assert not _exists(runtime, system.id)
    with pytest.raises(SandboxGone, match="closed"):
        system.run(["true"])


def test_close_during_a_command(start: Callable[..., System]):
    system = start()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            system.run(["sleep", "60"])
        except SandboxGone as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.4)
    system.close()
    thread.join(15)
    assert not thread.is_alive()
    assert len(errors) == 1


UMASK = """
import os, sys
os.umask(0o077)
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target
image, target, run, name = sys.argv[1:]
runtime = {"docker": DockerRuntime, "podman": DockerRuntime, "oci": OciRuntime}[name]()
system = runtime.start(SandboxSpec(image, Target.parse(target), Limits()), current_owner(run))
print(system.run(["id", "-u"]).stdout.strip(), system.run(["id", "-u"], user="daemon").stdout)
system.close()
runtime.close()
"""


def test_a_strict_umask_of_ours_does_not_matter(runtime: Runtime, image: str, target: object):
    done = subprocess.run(
        [sys.executable, "-c", UMASK, image, str(target), RUN + "umask", runtime.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["0", "1"], done.stderr


def test_a_fork_cannot_use_what_its_parent_started(start: Callable[..., System]):
    system = start()
    assert system.run(["true"]).ok
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            system.run(["true"])
        except SandboxGone as error:
            os.write(writer, error.what.encode())
        system.close()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:  # noqa: PTH123
        assert b"not to a fork" in told.read()
    os.waitpid(child, 0)
    assert system.run(["echo", "still here"]).stdout == "still here\n"


def test_no_descriptor_and_no_file_is_left(start: Callable[..., System], runtime: Runtime):
    def use(times: int) -> int:
        for _ in range(times):
            system = start()
            for _ in range(5):
                system.run(["cat"], input=b"x")
            system.close()
        return len(list(Path("/proc/self/fd").iterdir()))

    # The SDK keeps a pool of connections, so a few come and go; a leak would add one each time.
    before = use(3)
    assert use(12) < before + 12


CHILD = """
import sys, time
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.docker import DockerRuntime
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target
image, target, run, fast, name, launcher = sys.argv[1:]
more = {"launcher": launcher} if launcher else {}
runtime = {"docker": DockerRuntime, "oci": OciRuntime}[name](fast_path=fast == "True", **more)
spec = SandboxSpec(image, Target.parse(target), Limits())
system = runtime.start(spec, current_owner(run))
print(system.id, flush=True)
system.run(["sh", "-c", "trap '' TERM HUP INT; setsid sleep 600 & sleep 600"])
"""


def test_sigkill_of_the_owner_leaves_nothing(runtime: Runtime, image: str, target: object):
    fast = str(runtime.fast_path)
    launcher = ""
    if isinstance(runtime, OciRuntime):
        launcher = runtime.machine.launcher.replace("engine", "runc")
    words = [image, str(target), RUN + "child", fast, runtime.name, launcher]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    container = child.stdout.readline().strip()
    assert container
    time.sleep(0.5)
    assert _exists(runtime, container)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _exists(runtime, container):
        time.sleep(0.1)
    assert not _exists(runtime, container)
    # Its folder of FIFOs on the host, if it has one, goes with the next run's reaper.
    folders = int(runtime.fast_path and launcher != "direct")
    assert runtime.reap(lambda owner, _created: owner.run == RUN + "child") == folders


def _exists(runtime: Runtime, container: str) -> bool:
    if isinstance(runtime, OciRuntime):
        root = runtime.store.root
        known = (root / "sandboxes" / container, root / "owners" / container)
        groups = runtime.machine.access.cgroups.paths(container)
        return any(one.exists() for one in known) or groups.exists()
    assert isinstance(runtime, DockerRuntime)
    return bool(runtime.client.containers(all=True, filters={"id": container}))


def test_sweep_and_reap_touch_only_ours(start: Callable[..., System], runtime: Runtime, image: str):
    if isinstance(runtime, DockerRuntime):
        name = f"pytest-sandbox-{RUN}-foreign"
        foreign = runtime.client.create_container(image, ["sleep", "60"], name=name)["Id"]
    else:
        foreign = start(RUN + "-foreign").id
    try:
        run = RUN + "-dead"
        system = start(run)
        assert runtime.reap(lambda _owner, _created: False) == 0
        assert system.alive()
        assert runtime.sweep("no such run") == 0
        assert runtime.reap(lambda owner, _created: owner.run == run) == 1
        assert not _exists(runtime, system.id)
        assert _exists(runtime, foreign)
    finally:
        if isinstance(runtime, DockerRuntime):
            runtime.remove_container(foreign)
