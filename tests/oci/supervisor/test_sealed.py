"""A copy of the interpreter that nobody can change."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from pytest_sandbox.oci.supervisor import sealed


def test_the_copy_is_the_interpreter_and_cannot_be_written(monkeypatch):
    monkeypatch.setattr(sealed, "is_ours", lambda: True)
    program = sealed.interpreter()
    try:
        env = {"LD_LIBRARY_PATH": program.libraries} if program.libraries else {}
        look = "import os, sys; print(sys.prefix, os.readlink('/proc/self/exe'))"
        done = subprocess.run(
            [sys.executable, "-I", "-c", look],
            executable=program.path, env=env, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.split()[:2] == [sys.prefix, "/memfd:pytest-sandbox-python"]
        again = os.open(program.path, os.O_RDWR)
        for change in (lambda: os.write(again, b"x"), lambda: os.ftruncate(again, 0)):
            with pytest.raises(PermissionError) as caught:
                change()
            assert caught.value.errno == errno.EPERM
        os.close(again)
    finally:
        os.close(program.descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="root's sandboxes have ids of their own")
def test_root_needs_none():
    assert sealed.interpreter() == sealed.Program(sys.executable)
