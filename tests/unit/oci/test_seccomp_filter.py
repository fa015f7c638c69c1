"""Filters: what libseccomp makes of a profile, the part for clone3, and what is kept."""

from __future__ import annotations

import errno
import os

import pytest

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.oci import linux
from pytest_sandbox.oci.platforms import host_platform
from pytest_sandbox.oci.seccomp_filter import (
    compile_filter,
    deny_clone3,
    filter_for,
    split_clone3,
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
    changed, number = split_clone3(profile())
    assert number == errno.ENOSYS
    first = compile_filter(changed)
    assert under(first) == [0, errno.EPERM, 0], "clone3 alone is let through"
    assert under(first, deny_clone3(number)) == under(whole)


def test_a_profile_that_allows_clone3_needs_no_second_part():
    plain = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone3"], **ALLOWED}]}
    assert split_clone3(plain)[1] == 0
    assert split_clone3({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13})[1] == 13


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
    assert file.read_bytes() == first
    monkeypatch.setattr("pytest_sandbox.oci.seccomp_filter.compile_filter", lambda _: b"12345678")
    assert filter_for(profile(), folder) == first
    other = {**profile(), "defaultErrnoRet": 13}
    assert filter_for(other, folder) == b"12345678", "another profile is another filter"
    file.write_bytes(b"cut")
    assert filter_for(profile(), folder) == b"12345678", "a broken file is made anew"
