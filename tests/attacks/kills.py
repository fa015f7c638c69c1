"""`python -m tests.attacks.kills LAUNCHER IMAGE ROUNDS SEED`: SIGKILL at a random moment, again and
again, to a process that starts sandboxes or to one of those that work for it; then a look at what
is left.

This process is a subreaper: whatever outlives its parent becomes its child, so that nothing can
hide. It prints, as JSON, what survived, and how many sandboxes lived when it struck.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch

PR_SET_CHILD_SUBREAPER = 36
LONGEST = {"direct": 0.12}
RUN = f"kills{os.getpid()}"
PATIENCE = 10.0
SHORT = 1.0


def client(launcher: str, image: str, ready: int) -> None:
    """Start sandboxes with daemons in them, until something hinders it."""
    runtime = OciRuntime(launcher=launcher)
    spec = SandboxSpec(image, Target("linux", host_arch(), "debian"), Limits())
    owner = current_owner(RUN)
    runtime.start(spec, owner).close()  # the supervisor runs, and has its worker
    os.write(ready, b".")
    try:
        while True:
            system = runtime.start(spec, owner)
            system.run(["sh", "-c", "setsid sleep 1000 & (trap '' TERM; sleep 1000) & true"])
            if random.random() < 0.5:
                system.close()
    except SandboxError:
        pass
    finally:
        with contextlib.suppress(SandboxError):
            runtime.close()


def parents() -> dict[int, int]:
    """Every process and its parent; what has ended is not among them."""
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a path for each would take twice as long
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (
                    Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[:2]
                )
                if state not in (b"Z", b"X"):
                    found[int(entry)] = int(parent)
    return found


def below(root: int, *, without: int = 0) -> list[int]:
    """Every living descendant of a process but `without` and those below it."""
    table = parents()
    found, line = [], [root]
    while line:
        parent = line.pop()
        children = [pid for pid, one in table.items() if one == parent and pid != without]
        found += children
        line += children
    return found


def inside(pid: int) -> bool:
    """Whether a process is in a pid namespace of its own: a sandbox's."""
    with contextlib.suppress(OSError):
        spaces = [Path("/proc", name, "ns/pid").readlink() for name in (str(pid), "self")]
        return spaces[0] != spaces[1]
    return True


def reap() -> None:
    """Collect every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def gone(root: int, *, without: int = 0, patience: float = PATIENCE) -> list[int]:
    """What is still there after a while.

    A look that finds nothing is not enough: while /proc is read, an orphan may change its parent.
    """
    deadline = time.monotonic() + patience
    looks = 0
    while True:
        reap()
        left = below(root, without=without)
        looks = 0 if left else looks + 1
        if looks == 3 or time.monotonic() > deadline:
            return left
        time.sleep(0.004)


def sweep(launcher: str) -> None:
    """What the next run does before anything else. An engine that was killed between `create` and
    `start` leaves a process that waits, and has not run a word of the sandbox's yet.
    """
    runtime = OciRuntime(launcher=launcher)
    runtime.sweep(RUN)
    runtime.close()


def describe(pid: int) -> str:
    """A process in words."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"{pid}, gone since"
    return f"{pid} {name} {words.decode(errors='replace')[:80]}"


def strike(launcher: str, image: str) -> tuple[list[str], int]:
    """One round: what survived it, and how many processes of sandboxes there were."""
    me = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            client(launcher, image, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    begun = os.read(reader, 1)
    os.close(reader)
    assert begun, "the client did not begin"
    time.sleep(random.uniform(0, LONGEST.get(launcher, 0.4)))
    every = below(child)
    workers = [every[0], *(pid for pid in every[1:] if not inside(pid))]
    number = len(every) - len(workers)
    # The client, the supervisor, or any process of its: each as often as the others.
    victim_pid = random.choice([child, workers[0], random.choice(workers)])
    survivors: list[int] = []
    if victim_pid == workers[0] and launcher == "direct":
        # Nobody tidies up: what has lost its launcher ends by itself.
        os.kill(child, signal.SIGSTOP)
        os.kill(victim_pid, signal.SIGKILL)
        survivors = gone(me, without=child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim_pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    if launcher != "direct" and gone(me, patience=SHORT):
        sweep(launcher)
    survivors += gone(me)
    told = [describe(pid) for pid in survivors]
    for pid in survivors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return told, number


def main() -> None:
    launcher, image, rounds, seed = sys.argv[1:]
    random.seed(int(seed))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    survivors, met = [], 0
    for number in range(int(rounds)):
        told, processes = strike(launcher, image)
        survivors += [f"round {number}: {one}" for one in told]
        met += processes
    sweep(launcher)
    print(json.dumps({"survivors": survivors, "met": met}))


if __name__ == "__main__":
    main()
