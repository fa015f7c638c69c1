"""What a command can catch of another one that is just being started.

Between its fork and its program a command's process may still be the launcher's own program, with
the launcher's memory and descriptors. Nobody may look at it in that time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tests.attacks.conftest import OURS
from tests.attacks.interpreter import PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.base import Result, System

WATCH = """
import os
caught = rounds = 0
def foreign(pid):
    link = f"/proc/{pid}/exe"
    try:
        path = os.readlink(link)
        there = os.stat(link)
    except FileNotFoundError:
        return None  # not there, or the kernel's
    except OSError:
        return "closed"
    try:
        here = os.stat(path)
    except OSError:
        return path
    return "" if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else path
def newest():
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[4])
seen = set()
last = newest()
os.mkdir("/tmp/ready")
while not os.path.exists("/tmp/enough"):
    rounds += 1
    if rounds % 50 == 0 and not foreign(last + 1):
        last = max(last, newest() - 1)
    # Ids go up by one: the next process is met as soon as it is there.
    for pid in range(last + 1, last + 5):
        found = foreign(pid)
        if found is None:
            continue
        for _ in range(20000):
            if found != "closed":
                break
            found = foreign(pid)
        if found and found != "closed":
            seen.add(f"the program of a process was {found}")
            try:
                # What may open this may trace it, too.
                os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
                seen.add("its memory could be opened")
                seen.add(f"its descriptors: {len(os.listdir(f'/proc/{pid}/fd'))}")
            except OSError:
                pass
        last = pid
        caught += 1
        break
print("met" if caught else "met nobody")
print(*sorted(seen), sep="\\n")
"""


def test_a_starting_command_shows_nothing_of_its_launcher(
    launcher: str, start: Callable[..., System]
):
    system = start(pids=64, timeout=60)
    for user in ("root", "nobody") if launcher in OURS else ("root",):
        results: list[Result] = []
        watcher = threading.Thread(target=_watch, args=(system, user, results))
        watcher.start()
        while not system.run(["test", "-e", "/tmp/ready"]).ok:
            assert watcher.is_alive(), results
        for _ in range(150 if launcher == "direct" else 20):
            assert system.run(["true"], user=user).ok
        assert system.run(["touch", "/tmp/enough"], user=user).ok
        watcher.join(60)
        assert results[0].ok, results[0].stderr
        assert results[0].stdout.split("\n") == ["met", "", ""]
        assert system.run(["rm", "-r", "/tmp/ready", "/tmp/enough"]).ok


def _watch(system: System, user: str, results: list[Result]) -> None:
    results.append(system.run([PYTHON, "-I", "-S", "-c", WATCH], user=user))
