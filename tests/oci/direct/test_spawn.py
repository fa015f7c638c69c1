"""Processes by a table of system calls."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.seccomp_filter import compile_filter
from pytest_sandbox.runtimes.oci.launchers.direct.spawn import Row, pack, spawn
from pytest_sandbox.runtimes.oci.launchers.direct.tables import NUMBERS

CALLS = SimpleNamespace(**NUMBERS)
pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="this machine forks: it has no code for it"
)

KEPT = []


class Program:
    """execve(2) of a shell script, with what its arguments point to."""

    def __init__(self, script="", program="/bin/sh"):
        self._kept = [ctypes.create_string_buffer(os.fsencode(w)) for w in ("sh", "-c", script)]
        self._program = ctypes.create_string_buffer(os.fsencode(program))
        self._words = (ctypes.c_void_p * 4)(*map(ctypes.addressof, self._kept), None)
        self._env = (ctypes.c_void_p * 1)(None)

    def row(self, *, rest=False):
        KEPT.append(self)  # a row holds addresses alone
        places = (ctypes.addressof(one) for one in (self._program, self._words, self._env))
        return Row(CALLS.execve, tuple(places), rest)


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_program_runs_with_the_descriptors_it_was_given():
    reader, writer = os.pipe()
    program = Program("echo said; exit 7")
    rows = [Row(CALLS.setsid), Row(CALLS.dup3, (writer, 1, 0)), program.row()]
    spawned = spawn(pack(rows))
    os.close(writer)
    assert spawned.failed() is None
    assert spawned.result(0) == spawned.pid, "setsid gives the new session"
    assert [spawned.result(1), spawned.result(2)] == [1, None]
    assert status_of(spawned.pid) == 7
    assert os.read(reader, 100) == b"said\n"
    os.close(reader)


def test_the_first_program_that_is_there_runs():
    rows = [
        Program(program="/no/such").row(rest=True),
        Program(program="/etc").row(rest=True),
        Program("exit 3").row(rest=True),
        Program("exit 4").row(rest=True),
    ]
    spawned = spawn(pack(rows))
    assert spawned.failed() is None
    assert [spawned.result(row) for row in range(4)] == [-errno.ENOENT, -errno.EACCES, None, None]
    assert status_of(spawned.pid) == 3


def test_what_fails_is_told_and_the_child_ends():
    nowhere = ctypes.create_string_buffer(b"/no/such")
    rows = [Row(CALLS.chdir, (ctypes.addressof(nowhere),)), Program("exit 0").row()]
    spawned = spawn(pack(rows))
    assert spawned.failed() == (0, errno.ENOENT)
    assert status_of(spawned.pid) == 127
    rows = [Program(program="/no/such").row(rest=True)]
    spawned = spawn(pack(rows))
    assert spawned.failed() == (0, errno.ENOENT)
    assert status_of(spawned.pid) == 127
    # A table without a program ends, too.
    rows = [Row(CALLS.setsid)]
    spawned = spawn(pack(rows))
    assert spawned.failed() == (0, errno.ENOSYS)
    assert status_of(spawned.pid) == 127


def test_no_child_can_be_made_in_a_group_that_is_none(tmp_path):
    folder = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawn(pack([Program("exit 0").row()]), flags=linux.CLONE_INTO_CGROUP, cgroup=folder)
    os.close(folder)


def confinement():
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("NoNewPrivs", "Seccomp"))]


def test_the_filter_of_a_command_is_on_it_alone():
    plain = [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}]
    text = compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": plain})
    code = ctypes.create_string_buffer(text, len(text))
    # struct sock_fprog
    program = (ctypes.c_uint64 * 2)(len(text) // 8, ctypes.addressof(code))
    rows = [
        Row(CALLS.prctl, (linux.PR_SET_NO_NEW_PRIVS, 1)),
        Row(CALLS.prctl, (linux.PR_SET_SECCOMP, 2, ctypes.addressof(program))),
        Program("grep -q 'Seccomp_filters:.1' /proc/self/status && exit 5").row(),
    ]
    before = confinement()
    spawned = spawn(pack(rows))
    assert spawned.failed() is None
    assert status_of(spawned.pid) == 5
    assert confinement() == before, "this process has none of it"
    child = linux.clone3(0, exit_signal=17)
    if child == 0:
        os._exit(6)
    assert status_of(child) == 6
