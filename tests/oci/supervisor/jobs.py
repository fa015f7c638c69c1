"""Jobs of the tests; clients have them as pytest_sandbox.jobs_of_tests."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

from pytest_sandbox.errors import MissingDirectory, UsageError
from pytest_sandbox.oci.supervisor.jobs import repeatable

warmed = []


def warm():
    warmed.append(os.getpid())


def echo(call):
    return {
        "args": call.args,
        "warmed": len(warmed) == 1 and warmed != [os.getpid()],
        "uid": os.getuid(),
        "uid_map": Path("/proc/self/uid_map").read_text().split(),
        "room": call.room,
    }


def in_the_ids(call):
    def look():
        return {"uid_map": Path("/proc/self/uid_map").read_text().split(), "uid": os.getuid()}

    return {"before": look(), "inside": call.mapped(look), "after": look()}


def fail(call):
    kind = call.args["kind"]
    if kind == "sandbox":
        msg = "no such folder: /x"
        raise MissingDirectory(msg, next_step="make it", details="line 1\nline 2")
    if kind == "usage":
        msg = "wrong word"
        raise UsageError(msg)
    if kind == "os":
        os.open("/does/not/exist", os.O_RDONLY)
    if kind == "value":
        msg = "no number"
        raise ValueError(msg)
    if kind == "mapped":
        call.mapped(lambda: {"opened": os.open("/does/not/exist", os.O_RDONLY)})
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    msg = "unforeseen"
    raise RuntimeError(msg)


def copy(call):
    """From the first descriptor to the second, and the first itself back."""
    source, target = call.fds
    data = os.read(source, 1000)
    os.write(target, data.upper())
    reader, writer = os.pipe()
    os.write(writer, b"made here")
    call.send({"here": 1}, [reader])
    call.send({"here": 2})
    os.close(reader)
    os.close(writer)
    return {"read": len(data)}


def sleep(call):
    Path(call.args["file"]).write_text(str(os.getpid()))
    time.sleep(60)


def leave(call):
    """Leave an orphan to the supervisor, which watches it."""

    def orphan(code):
        reader, writer = os.pipe()
        if os.fork() == 0:
            pid = os.fork()
            if pid == 0:
                try:
                    os.closerange(3, 1000)  # a program has none of a job's descriptors
                    code()
                finally:
                    os._exit(99)
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.wait()
        pid = int(os.read(reader, 100))
        os.close(reader)
        os.close(writer)
        return pid

    def main():
        time.sleep(call.args.get("seconds", 60))
        os._exit(call.args.get("status", 0))

    if "next_pid" in call.args:
        # The intermediate process gets one id, the orphan the next.
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(call.args["next_pid"] - 2))
    pid = orphan(main)
    after = None
    if "file" in call.args:
        after = ("pytest_sandbox.jobs_of_tests:note", {"file": call.args["file"]})
    if call.args.get("late"):
        time.sleep(0.5)
    if call.args.get("watch", True):
        call.watch(pid, after=after)
    return {"pid": pid}


def note(call):
    for process in call.fds:  # it was ended by its caller
        select.select([process], [], [])
    Path(call.args["file"]).write_text(f"{call.args['status']}")
    call.send({"noted": True, "dying": len(call.fds)})
    return {"more": 1}


@repeatable
def who(call):
    if call.args.get("fail"):
        msg = "this one"
        raise ValueError(msg)
    call.spent = bool(call.args.get("spent"))
    time.sleep(call.args.get("seconds", 0))
    return {"pid": os.getpid(), "descriptors": len([*Path("/proc/self/fd").iterdir()])}
