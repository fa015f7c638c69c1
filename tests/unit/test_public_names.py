"""What the package offers to the world."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest_sandbox
from pytest_sandbox import errors


def test_the_list_is_sorted_and_every_name_is_there() -> None:
    assert pytest_sandbox.__all__ == sorted(pytest_sandbox.__all__)
    for name in pytest_sandbox.__all__:
        assert getattr(pytest_sandbox, name).__name__ == name


def test_every_error_is_public() -> None:
    found = {
        name
        for name, one in vars(errors).items()
        if inspect.isclass(one) and one.__module__ == errors.__name__
    }
    assert found <= set(pytest_sandbox.__all__)


def test_an_unused_plugin_imports_no_engine_and_no_heavy_library() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import pytest_sandbox.plugin; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"docker", "httpx", "requests", "urllib3", "msgspec", "filelock", "rich", "click"}
    assert not heavy & set(done.stdout.split())
