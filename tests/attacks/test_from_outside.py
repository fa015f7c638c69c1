"""What a sandbox does to the launcher and to the machine, seen from outside."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxGone, SandboxTimeout
from tests.attacks.interpreter import FOLDER, PACKAGE, PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.base import Result, Runtime, System


def python(system: System, program: str, **keywords: object) -> Result:
    return system.run([PYTHON, "-I", "-S", "-c", program], **keywords)  # type: ignore[arg-type]


def soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def devices() -> list[tuple[int, int, int]]:
    """Owner, group and mode of what the machine shares with sandboxes."""
    found = [Path("/dev", name).stat() for name in ("null", "zero", "full", "tty", "urandom")]
    return [(one.st_uid, one.st_gid, one.st_mode) for one in found]


SIGNALS = """
import os, signal
for target in (1, os.getppid(), -1):
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
        if number != signal.SIGCONT:
            signal.signal(number, signal.SIG_IGN)
        try:
            os.kill(target, number)
        except OSError:
            pass
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    pass  # there is nobody but process 1
print("here")
"""


def test_signals_reach_nobody_outside(
    launcher: str, runtime: Runtime, start: Callable[..., System]
):
    system, neighbour = start(), start()
    before = devices()
    # It may end its own sandbox, where an init forwards signals; then that is said at once.
    ended = None
    try:
        result = python(system, SIGNALS, timeout=30)
        assert result.stdout == "here\n"
        assert system.run(["echo", "usable"], timeout=30).stdout == "usable\n"
    except SandboxGone as gone:
        ended = gone
    assert ended is None or launcher != "direct"
    assert neighbour.run(["echo", "usable"]).stdout == "usable\n"
    assert start().run(["echo", "usable"]).stdout == "usable\n"
    assert devices() == before


STAGE = f"""
import sys
sys.path.insert(0, {FOLDER!r})
from {PACKAGE} import ATTACKS, Outside
print(next(one for one in ATTACKS if one.name == "launcher-program").run(Outside()))
"""


@pytest.mark.parametrize("way", ["script", "link", "path"])
def test_the_launchers_own_program_is_no_handle_on_the_machine(
    launcher: str, start: Callable[..., System], way: str
):
    """CVE-2019-5736: `/proc/self/exe`, executed where a command is still its launcher."""
    system = start()
    made = 'printf "#!%s -IS\\n%s" /proc/self/exe "$0" >/tmp/script; printf "%s" "$0" >/tmp/stage'
    assert system.run(["sh", "-c", made, STAGE]).ok
    assert system.run(["sh", "-c", "chmod 755 /tmp/script; ln -s /proc/self/exe /tmp/link"]).ok
    words = {"script": ["/tmp/script"], "link": ["/tmp/link"], "path": ["/proc/self/exe"]}[way]
    result = system.run([*words, *([] if way == "script" else ["-IS", "/tmp/stage"])])
    # What starts commands is no Python: a shell of the sandbox, or the program of process 1, which
    # does nothing without its channel (and which nobody can write to: see test_program).
    assert result.stdout in ("None\n", "")


BOMB = """
import os, time
for _ in range(8):
    try:
        os.fork()
    except OSError:
        pass
while True:
    time.sleep(100)
"""


COUNT = ["sh", "-c", "set -- /proc/[0-9]*; echo $#"]


def test_a_bomb_of_255_processes_is_gone_and_the_sandbox_usable(start: Callable[..., System]):
    system = start(pids=300)
    before = int(system.run(COUNT).stdout)
    for seconds in (2.0, 12.0):  # a busy machine may need longer to make them all
        most = _go_off(system, seconds)
        assert soon(lambda: int(system.run(COUNT).stdout) <= before + 1)
        if most > 250:
            return
    pytest.fail(f"the bomb did not go off: {most} processes")


def _go_off(system: System, seconds: float) -> int:
    """How many processes there were before a bomb's time was over."""
    full = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and full[-1] <= 250:
            with contextlib.suppress(SandboxTimeout, ValueError):
                full.append(int(system.run(COUNT, timeout=10).stdout))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(SandboxTimeout):
            python(system, BOMB, timeout=seconds)
    finally:
        over.set()
        watcher.join()
    return max(full)


def test_a_bomb_without_end_stops_at_the_limit(start: Callable[..., System]):
    system = start(pids=60)
    program = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
    with pytest.raises(SandboxTimeout):
        python(system, program, timeout=1.5)
    assert system.run(["echo", "usable"], timeout=20).stdout == "usable\n"


def test_a_memory_hog_ends_alone(start: Callable[..., System]):
    system, neighbour = start(memory=96 << 20), start()
    before = _killed()
    hog = "held = []\nwhile True: held.append(bytearray(1 << 20))"
    result = python(system, hog, timeout=60)
    assert (result.returncode, result.limit) == (137, "memory")
    assert neighbour.run(["echo", "usable"]).stdout == "usable\n"
    assert system.run(["echo", "usable"]).stdout == "usable\n"
    # Memory of files counts too: /dev/shm and /tmp of a sandbox are no way around the limit.
    shm = "file = open('/dev/shm/x', 'wb')\nfor _ in range(200): file.write(bytes(1 << 20))"
    result = python(system, shm, timeout=60)
    assert not result.ok
    assert _killed() >= before


def _killed() -> int:
    text = Path("/proc/vmstat").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def test_a_disk_hog_is_ended_where_the_engine_can_and_said_where_not(
    runtime: Runtime, start: Callable[..., System]
):
    if runtime.info().disk_limit:
        result = start(disk=16 << 20).run(
            ["dd", "if=/dev/zero", "of=/root/big", "bs=1M", "count=64"], timeout=60
        )
        assert (result.ok, result.limit) == (False, "disk")
        return
    # No limit: what was asked for is nowhere pretended, and what was written goes at the end.
    system = start()
    assert system.run(["dd", "if=/dev/zero", "of=/root/big", "bs=1M", "count=64"]).ok
    free = _free()
    system.close()
    assert soon(lambda: _free() > free + (32 << 20)), "the space of a closed sandbox is free again"


def _free() -> int:
    found = os.statvfs("/tmp")
    return found.f_bavail * found.f_frsize


def test_descriptors_have_a_limit(start: Callable[..., System]):
    program = (
        "import os\nn = 0\n"
        "try:\n  while True:\n    os.dup(0)\n    n += 1\nexcept OSError as e: print(n, e.errno)"
    )
    assert python(start(nofile=64), program).stdout == "61 24\n"
