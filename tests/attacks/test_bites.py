"""Every attack succeeds where nothing hinders it: else it would show nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sandbox.runtimes.oci.launchers.attacks import ATTACKS

ROOT = Path(__file__).parents[2]

BARE = """
import ctypes, json, os, socket, sys
from pytest_sandbox.runtimes.oci.launchers.attacks import ATTACKS, Outside, attempt
libc = ctypes.CDLL(None)
MS_PRIVATE, NEW_MOUNTS = 16384 | (1 << 18), 0x20000
found = {}
for attack in ATTACKS:
    if not attack.applies():
        continue
    reader, writer = os.pipe()
    if os.fork() == 0:
        # A mount table of its own for each: some attacks leave nothing of it.
        assert libc.unshare(NEW_MOUNTS) == 0
        assert libc.mount(b"none", b"/", None, MS_PRIVATE, None) == 0
        told = attempt(attack, Outside()) or ""
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    found[attack.name] = os.read(reader, 4096).decode()
    os.wait()
    os.close(reader)
print(json.dumps(found))
"""
"""Root in namespaces of its own but for the user's and the groups': no filter, no masks."""

NAIVE = """
import json, os, socket, sys, time
from pytest_sandbox.runtimes.oci.launchers.attacks import ATTACKS, Outside, attempt
mark = b"a-word-of-the-launcher"
kept = os.open("/usr", os.O_RDONLY | os.O_DIRECTORY)
os.dup2(kept, 30)
outer = os.open("/", os.O_RDONLY)
port = socket.create_server(("127.0.0.1", 0))
name = f"naive-{os.getpid()}"
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(chr(0) + name)
abstract.listen()
folder = sys.argv[1]
path = socket.socket(socket.AF_UNIX)
path.bind(f"{folder}/run/agent.sock")
path.listen()
outside = Outside((mark,), (port.getsockname()[1],), (name,))
os.chroot(folder)
os.chdir("/")
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    found = {}
    for attack in ATTACKS:
        # Not those that end or stop a process 1 without any protection.
        if attack.name in sys.argv[3].split(","):
            found[attack.name] = attempt(attack, outside) or ""
    os.write(writer, json.dumps(found).encode())
    os._exit(0)
os.close(writer)
out = b""
while part := os.read(reader, 65536):
    out += part
print(out.decode())
"""
"""What a launcher without care does: a fork of itself behind a chroot, with all that it holds."""
OF_NAIVE = (
    "proc-memory",
    "proc-traces",
    "proc-descriptors",
    "ptrace",
    "launcher-program",
    "chroot",
    "descriptors",
    "interfaces",
    "loopback",
    "abstract-sockets",
    "socket-files",
)

UNTRIED = {
    "proc-folders": "every control has one root for all its processes",
    "proc-namespace": "asked of a sandbox that has no pid namespace",
    "pidfd": "asked of a sandbox that has no pid namespace",
    "kill-first": "the kernel protects the first process of every pid namespace",
    "parent": "asked of a sandbox that has no pid namespace",
    "dotdot": "what a mount's own `..` leads to is the kernel's",
    "device-owner": "devices of the machine are not bound here",
    "modules": "not every kernel has modules",
    "oom-score": "root of a virtual machine may lack CAP_SYS_RESOURCE",
    "terminal": "tests have none",
    "x32": "few kernels have x32",
    "standard-files": "stdout is a pipe here",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="root lets everything through, a user does not")
def test_every_attack_finds_what_it_looks_for(tmp_path):
    found = {}
    for program, words, arguments in (
        (BARE, ["--mount", "--net", "--ipc", "--uts"], []),
        (NAIVE, ["--mount"], [str(tmp_path), "x", ",".join(OF_NAIVE)]),
    ):
        if arguments:
            for name in ("proc", "run"):
                (tmp_path / name).mkdir()
        setup = f"mount -t proc proc {tmp_path}/proc; " if arguments else ""
        done = subprocess.run(
            ["unshare", *words, "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
             setup + 'exec "$@"', "sh", sys.executable, "-c", program, *arguments],
            capture_output=True, text=True, check=False, timeout=100, cwd="/",
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for name, text in json.loads(done.stdout).items():
            assert "could not be tried" not in text, (name, text)
            found[name] = found.get(name) or text
    harmless = {name for name, text in found.items() if not text}
    assert harmless <= UNTRIED.keys()
    assert found.keys() == {attack.name for attack in ATTACKS if attack.applies()}
