"""The direct launcher for real: like starts, blanks, the choice, ends, and what nobody may see."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_sandbox.errors import RuntimeUnavailable, SandboxError
from pytest_sandbox.limits import Limits
from pytest_sandbox.oci.cgroups import find_cgroups
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.oci.launchers.direct import trial
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from tests.oci.builds.conftest import TARGET, busybox, remove, tiny
from tests.oci.supervisor.conftest import alive, soon

__all__ = ["busybox"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("direct")


@pytest.fixture(scope="module")
def runtime(busybox, place):
    found = OciRuntime(folder=place / "oci", launcher="direct")
    try:
        found.info()
    except SandboxError as missing:
        pytest.skip(str(missing))
    found.load_rootfs(tiny(busybox), "base:1", TARGET, {})
    yield found
    remove(found, place, "oci")


@pytest.fixture
def start(runtime):
    systems = []

    def begin(**values):
        spec = SandboxSpec("base:1", TARGET, values.pop("limits", Limits()), **values)
        systems.append(runtime.start(spec, current_owner("direct")))
        return systems[-1]

    yield begin
    for system in systems:
        system.close()


def said(system, script):
    done = system.run(["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout


def groups_of(runtime):
    return [name for name in find_cgroups().names() if f"-{runtime.supervisor.pid}-" in name]


def test_starts_of_a_kind_are_alike(start):
    look = "ls -a /; ls -al /etc /dev; cat /etc/hosts /etc/hostname /etc/resolv.conf /proc/mounts"
    first, *rest = [start() for _ in range(3)]

    def shown(system):
        """Folders of the layers have names of their own for each; mounts are in any order."""
        return sorted(re.sub(r"(upper|work|lower)dir[^,]*", "", said(system, look)).splitlines())

    for system in rest:
        assert shown(system) == shown(first)
        assert system.changes() == first.changes()
    assert not first.changes().added
    said(first, "echo mine >>/etc/hosts; echo mine >/tmp/file")
    assert "mine" not in said(rest[0], "cat /etc/hosts; ls /tmp")
    assert "mine" not in said(start(), "cat /etc/hosts; ls /tmp")


def test_a_spec_of_another_kind_is_another_sandbox(start):
    plain = start()
    other = start(env={"WORD": "x"}, limits=Limits(nofile=77), tmpfs={"/data": 1 << 20})
    assert said(other, "echo $WORD; ulimit -n; ls /data") == "x\n77\n"
    assert said(plain, "echo $WORD; ls /data").split() == ["old"]


def test_groups_go_with_their_sandboxes(runtime, start):
    if os.geteuid() != 0:
        pytest.skip("an ordinary user has no groups here")
    for _ in range(5):
        start().close()
    # One blank waits for the next start, until its worker has waited long enough.
    assert soon(lambda: len(groups_of(runtime)) <= 1)
    assert soon(lambda: not groups_of(runtime), 15)


def test_each_command_has_a_group_of_its_own_and_gives_it_back(runtime, start):
    if os.geteuid() != 0:
        pytest.skip("an ordinary user has no groups here")
    system = start()
    unified = runtime.machine.access.cgroups.paths(system.engine.group).unified

    def commands():
        return [path for path in unified.glob("c*") if path.is_dir()]

    def busy():
        told = {path: (path / "cgroup.events").read_text() for path in commands()}
        return [path for path, text in told.items() if "populated 1" in text]

    for _ in range(8):
        said(system, "true")
    # One that was just reaped may be in its group for a moment.
    assert len(commands()) <= 2, "used again"
    said(system, "sleep 300 >/dev/null 2>&1 &")
    said(system, "true")
    assert soon(lambda: len(busy()) == 1), "what runs on keeps its group"
    assert len(commands()) >= 2
    assert soon(lambda: "sleep" in said(system, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))


def test_a_killed_maker_of_blanks_costs_nothing_but_time(runtime, start):
    first = start()
    keeper = runtime.supervisor.pid
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    helpers = {int(pid) for pid in children} - {first.engine.pid}
    assert helpers, "workers, a maker, blanks"
    for pid in helpers:
        with contextlib.suppress(ProcessLookupError):  # one had waited long enough
            os.kill(pid, signal.SIGKILL)
    assert soon(lambda: not any(map(alive, helpers)))
    assert said(first, "echo lives") == "lives\n"
    assert said(start(), "echo too") == "too\n"


def test_blanks_that_were_killed_are_not_used(runtime, start):
    first = start()
    assert said(first, "echo lives") == "lives\n"
    assert soon(lambda: _waiting(runtime, [first])), "a blank is made"
    killed = _waiting(runtime, [first])
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert soon(lambda: not any(map(alive, killed)))
    assert said(start(), "echo too") == "too\n"


def test_kinds_in_turn_keep_what_waits_for_each(runtime, place):
    """As a run's items do: one system to install in, one to verify in."""
    mine = OciRuntime(folder=place / "oci", launcher="direct")  # nobody else's blanks
    kinds = [SandboxSpec("base:1", TARGET, limits) for limits in (Limits(), Limits(nofile=77))]
    systems = []
    try:
        for kind in kinds:
            systems.append(mine.start(kind, current_owner("direct")))
            time.sleep(0.3)  # its worker is idle, and takes the next one, too
        assert soon(lambda: len(_waiting(mine, systems)) >= 2), "a blank of each kind"
        time.sleep(0.5)  # so are all that are made ahead
        kept = _waiting(mine, systems)
        systems.append(mine.start(kinds[0], current_owner("direct")))
        assert systems[-1].engine.pid in kept
        assert all(map(alive, kept)), "those of the other kind were thrown away"
    finally:
        for system in systems:
            system.close()
        mine.close()


def _waiting(runtime, systems):
    """The pids of the blanks that are there."""
    keeper = runtime.supervisor.pid
    used = [system.engine.pid for system in systems]
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    mine = [int(pid) for pid in children if int(pid) not in used]
    return [pid for pid in mine if _namespace(pid) not in {0, _namespace(keeper)}]


def _namespace(pid):
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return 0


def test_many_commands_at_once(start):
    system = start()

    def one(number):
        return said(system, f"sleep 1; echo {number}")

    with ThreadPoolExecutor(30) as pool:
        for _ in range(2):
            assert list(pool.map(one, range(30))) == [f"{number}\n" for number in range(30)]
    assert said(system, "echo usable") == "usable\n"


def test_long_commands_at_once_do_not_mix(start):
    """What they are told is too long for a message, and lies in one place."""
    system = start()

    def one(number):
        words = [str(number)] * (1000 + number)
        script = 'for word; do [ "$word" = "$0" ] || exit 9; done; echo "$0 $#"'
        return system.run(["sh", "-c", script, str(number), *words]).stdout

    def longer(number):
        text = str(number) * 4000
        return said(system, f"echo {text} | wc -c; : {'y' * 90_000}").strip()

    with ThreadPoolExecutor(4) as pool:
        numbers = list(range(10, 50))
        assert list(pool.map(one, numbers)) == [f"{n} {1000 + n}\n" for n in numbers]
        assert set(pool.map(longer, numbers)) == {"8001"}


def test_process_one_comes_before_its_commands(start):
    """Else a fork bomb would keep it from ending that."""
    nice = said(start(), "cut -d' ' -f19 /proc/1/stat /proc/self/stat").split()
    assert nice == (["-15", "0"] if os.geteuid() == 0 else ["0", "0"])


def test_process_one_says_nothing_of_the_host(start):
    system = start()
    seen = said(system, "cat /proc/1/cmdline /proc/1/comm; cat /proc/1/environ 2>/dev/null || true")
    assert seen.strip("\0\n ").replace("\0", "") == "sandbox-init" + "sandbox-init"
    assert system.run(["ls", "/proc/1/root/"]).returncode


def test_auto_says_why_it_does_not_take_it(runtime, place, monkeypatch):
    why = "its sandboxes do not hold on this kernel: ptrace: process 1 can be traced"
    monkeypatch.setattr(trial, "_try", lambda _machine: trial.Trial(why, "use runc"))
    monkeypatch.setattr(trial, "FORMAT", -1)  # what is known of this boot does not count
    chosen = OciRuntime(folder=place / "oci", launcher="auto")
    try:
        assert any(why in note for note in chosen.info().notes)
        assert chosen.machine.launcher == "engine"
    finally:
        chosen.close()
    with pytest.raises(RuntimeUnavailable, match="process 1 can be traced"):
        OciRuntime(folder=place / "oci", launcher="direct").info()


def test_the_self_test_is_made_once_a_boot(runtime, monkeypatch):
    monkeypatch.setattr(trial, "FORMAT", -2)
    assert trial.tried(runtime.machine).passed
    kept = Path(runtime.store.root, "launcher.json")
    os.utime(kept, (1, 1))
    assert trial.tried(runtime.machine).passed
    assert kept.stat().st_mtime == 1
    assert trial.tried(runtime.machine, fresh=True).passed
    assert kept.stat().st_mtime > 1
