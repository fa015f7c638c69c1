"""Weaker limits on real processes: a limit of CPUs is set by affinity, or refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_sandbox.errors import RuntimeUnavailable
from pytest_sandbox.runtimes.oci.order import LimitOrder
from pytest_sandbox.runtimes.oci.weak import impose


def test_cpus_are_limited_by_affinity() -> None:
    usable = sorted(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            impose(process.pid, LimitOrder(cpus=0.5), -1)
            assert sorted(os.sched_getaffinity(process.pid)) == usable
            impose(process.pid, LimitOrder(cpus=0.5, weak=("cpus",)), -1)
            assert sorted(os.sched_getaffinity(process.pid)) == usable[:1]
        finally:
            process.kill()


def test_a_limit_of_cpus_that_cannot_be_set_is_told() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(RuntimeUnavailable, match=r"the limit of 1\.5 CPUs cannot be set") as wrong:
        impose(process.pid, LimitOrder(cpus=1.5, weak=("cpus",)), -1)
    assert wrong.value.blame == "host"
    assert "limit of CPUs" in wrong.value.next_step
