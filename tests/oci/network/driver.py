"""A program for the tests: be what the supervisor's job is, with one sandbox-like process.

Arguments: one JSON object (ports, stacks, resolv_conf, path). It becomes root of a user namespace
if it is not root, makes a process in a user and a network namespace of its own (as `runc create`
does), attaches a network, and prints what it got. Then each line of stdin is a Python program that
runs inside, as the sandbox's root; its output comes back as JSON. `!end` ends the sandbox and says
how many processes are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.ids import find_ids
from pytest_sandbox.oci.network.bridge import attach
from pytest_sandbox.oci.network.ports import Port


def become_root(ids):
    """As the supervisor of an ordinary user."""
    me, (ready, tell), (go, done) = os.getpid(), os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:
        os.read(ready, 1)
        for tool, ranges in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
            words = [str(number) for entry in ranges for number in entry]
            subprocess.run([tool, str(me), *words], check=True)
        os.write(done, b".")
        os._exit(0)
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    os.write(tell, b".")
    assert os.read(go, 1)
    os.waitpid(helper, 0)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def make_box(ids):
    """The sandbox's first process."""
    (ready, tell), (go, done) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
        os.write(tell, b".")
        os.read(go, 1)
        while True:
            signal.pause()
    assert os.read(ready, 1)
    for name, ranges in (("uid_map", ids.uids), ("gid_map", ids.gids)):
        lines = [(a, a if ids.rootless else b, c) for a, b, c in ranges]
        text = "".join(f"{a} {b} {c}\n" for a, b, c in lines)
        Path(f"/proc/{child}/{name}").write_text(text, encoding="ascii")
    os.write(done, b".")
    return child


def run_inside(pid, code):
    """A Python program in the sandbox's namespaces."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os.dup2(tell, 1)
        os.dup2(tell, 2)
        try:
            user, net = (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("user", "net"))
            linux.setns(user)
            linux.setns(net)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
            exec(compile(code, "inside", "exec"), {"__name__": "inside"})
        except BaseException:
            os.write(1, traceback.format_exc().encode())
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(tell)
    return child, ready


def main():
    told = json.loads(sys.argv[1])
    ids = find_ids()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.geteuid() != 0:
        become_root(ids)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    if told.get("resolv_conf"):
        linux.mount(told["resolv_conf"], os.path.realpath("/etc/resolv.conf"), "", linux.MS_BIND)
    if told.get("path"):
        os.environ["PATH"] = told["path"] + ":" + os.environ["PATH"]
    pid = make_box(ids)
    begun = time.monotonic()
    try:
        ports = [Port(**port) for port in told.get("ports", [])]
        attached = attach(pid, ports=ports, stacks=told["stacks"])
    except SandboxError as error:
        problem = getattr(error, "problem", "")
        answer = {"what": error.what, "next_step": error.next_step, "problem": problem}
        print(json.dumps({"error": answer, "children": children()}), flush=True)
        return
    took = time.monotonic() - begun
    print(json.dumps({**asdict(attached), "box": pid, "seconds": took}), flush=True)
    background = []
    for line in sys.stdin:
        if line.strip() == "!end":
            for child in (*background, pid):
                os.kill(child, signal.SIGKILL)
            end = time.monotonic() + 5
            while (left := children()) and time.monotonic() < end:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
                time.sleep(0.002)
            print(json.dumps(left), flush=True)
            return
        request = json.loads(line)
        child, output = run_inside(pid, request["code"])
        with open(output, "rb") as file:  # noqa: PTH123
            if request.get("stays"):  # a server: its first line says that it is up
                background.append(child)
                text = file.readline()
            else:
                text = file.read()
                os.waitpid(child, 0)
        print(json.dumps(text.decode()), flush=True)


def children():
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


main()
