"""Filters: what libseccomp makes of a profile, the part for clone3, and what is kept."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.platforms import host_platform
from pytest_sandbox.oci.seccomp_filter import (
    compile_filter,
    deny,
    filter_for,
    split,
)
from pytest_sandbox.oci.spec.capabilities import DEFAULT
from pytest_sandbox.oci.spec.seccomp import seccomp

ALLOWED = {"action": "SCMP_ACT_ALLOW"}


def profile():
    return seccomp(host_platform().architecture, os.uname().release, DEFAULT)


def under(*filters):
    """What a process under filters may do: the errno of clone3, unshare(CLONE_NEWUSER), mkdir."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            for program in filters:
                linux.install_filter(program)
            found = []
            for attempt in (_clone, lambda: linux.unshare(linux.CLONE_NEWUSER), os.getcwd):
                try:
                    attempt()
                    found.append(0)
                except OSError as wrong:
                    found.append(wrong.errno)
            os.write(writer, repr(found).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as source:  # noqa: PTH123
        return [int(word) for word in source.read().strip("[]").split(",")]


def _clone():
    child = linux.clone3(0, exit_signal=17)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def test_both_parts_together_say_what_the_profile_says():
    whole = compile_filter(profile())
    assert under(whole) == [errno.ENOSYS, errno.EPERM, 0]
    for needed, alone in (
        (["clone3"], [0, errno.EPERM, 0]),
        (["clone3", "unshare", "mount"], [0, 0, 0]),
    ):
        changed, denied = split(profile(), needed)
        first, second = compile_filter(changed), deny(denied, profile()["architectures"])
        assert under(first) == alone, "what was needed is let through, and no more"
        assert under(first, second) == under(whole)
        assert len(second) < len(first) / 20


def test_what_a_profile_allows_needs_no_second_part():
    plain = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone3"], **ALLOWED}]}
    assert split(plain, ["clone3"])[1] == {}
    assert deny({}, profile()["architectures"]) == b""
    strict = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13}
    assert split(strict, ["mount"])[1] == {"mount": 13}
    condition = {"names": ["clone3"], "args": [{"index": 0}], **ALLOWED}
    with pytest.raises(RuntimeUnavailable, match="conditions on clone3"):
        split({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [condition]}, ["clone3"])


def run(program, architecture, number):
    """What a filter gives for a call (classic BPF, with what ours uses of it)."""
    code = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        kind, yes, no, word = code[at]
        at += 1
        if kind == 0x20:
            value = architecture if word == 4 else number
        elif kind == 0x54:
            value &= word
        elif kind == 0x06:
            return word
        else:
            at += yes if (value == word if kind == 0x15 else value >= word) else no


def test_every_number_of_every_architecture():
    """The same calls have other numbers elsewhere; x32 has x86_64's, with a bit."""
    calls = {"mount": 1, "umount2": 1, "pivot_root": 13, "clone3": 38, "move_mount": 1}
    names = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]
    program = deny(calls, names)
    x86_64, x86, aarch64 = 0xC000003E, 0x40000003, 0xC00000B7
    expected = {
        x86_64: {165: 1, 166: 1, 155: 13, 435: 38, 429: 1},
        x86: {21: 1, 52: 1, 217: 13, 435: 38, 429: 1},
        aarch64: {40: 1, 39: 1, 41: 13, 435: 38, 429: 1},
    }
    for architecture, numbers in expected.items():
        bits = (0, 0x40000000) if architecture == x86_64 else (0,)
        for bit in bits:
            for number in range(600):
                errno_of = numbers.get(number)
                wanted = 0x7FFF0000 if errno_of is None else 0x00050000 | errno_of
                assert run(program, architecture, number | bit) == wanted, (architecture, number)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "SCMP_ACT_NOTIFY"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x"}, "linux.seccomp.listenerPath"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_VAX"]}, "SCMP_ARCH_VAX"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(wrong, name):
    with pytest.raises(RuntimeUnavailable, match=name):
        compile_filter(wrong)


def test_a_name_that_the_library_does_not_know_is_passed_over():
    base = {"defaultAction": "SCMP_ACT_ALLOW"}
    odd = [{"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"}]
    assert compile_filter({**base, "syscalls": odd}) == compile_filter(base)


def test_a_filter_is_compiled_once(tmp_path, monkeypatch):
    folder = tmp_path / "filters"
    first = filter_for(profile(), folder)
    (file,) = folder.iterdir()
    kept = file.read_bytes()
    assert kept.endswith(first)
    monkeypatch.setattr("pytest_sandbox.oci.seccomp_filter.compile_filter", lambda _: b"12345678")
    assert filter_for(profile(), folder) == first
    other = {**profile(), "defaultErrnoRet": 13}
    assert filter_for(other, folder) == b"12345678", "another profile is another filter"
    file.write_bytes(b"cut")
    assert filter_for(profile(), folder) == b"12345678", "a broken file is made anew"
    file.write_bytes(kept.replace(b"SCMP_ACT_ALLOW", b"SCMP_ACT_OTHER", 1))
    assert filter_for(profile(), folder) == b"12345678", "so is one that is for another profile"
