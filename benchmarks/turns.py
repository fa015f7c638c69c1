"""A pytest plugin that lets a benchmark say when the next test runs, and tells it what set-up and
tear-down took. Loaded with `-p benchmarks.turns`; BENCH_TURNS names the descriptors to hear and to
tell by.

A test is told of as one line of JSON, the end of the run as another.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

VARIABLE = "BENCH_TURNS"
_took: dict[str, float] = {}
_streams: dict[str, Any] = {}


def _stream(name: str) -> Any:
    if not _streams:
        hear, tell = map(int, os.environ[VARIABLE].split())
        _streams["hear"] = os.fdopen(hear, "r", encoding="ascii")
        _streams["tell"] = os.fdopen(tell, "w", encoding="ascii")
    return _streams[name]


def _tell(what: dict[str, Any]) -> None:
    _stream("tell").write(json.dumps(what) + "\n")
    _stream("tell").flush()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    del item
    _stream("hear").readline()
    done = yield
    _tell(dict(_took))
    return done


def _measured(phase: str) -> Generator[None, object, object]:
    began = time.perf_counter()
    try:
        return (yield)
    finally:
        _took[phase] = time.perf_counter() - began


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _measured("setup"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _measured("call"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    return (yield from _measured("teardown"))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    from pytest_sandbox.state import STATE

    opened = session.config.stash[STATE].opened
    pool = opened.systems.pool if opened is not None else None
    found = {"status": int(exitstatus), "started": 0, "taken": 0}
    if pool is not None:
        found |= {"started": pool.started, "taken": pool.taken}
    _tell(found)
