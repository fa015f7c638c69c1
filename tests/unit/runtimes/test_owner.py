"""Whose something is, and whether that owner lives."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from pytest_sandbox.runtimes.owner import (
    FOREIGN_AGE,
    current_owner,
    owner_from_labels,
    owner_is_dead,
    owner_labels,
)


def test_this_process_lives():
    owner = current_owner("r")
    assert owner.run == "r"
    assert not owner_is_dead(owner, 0.0, time.time())


def test_another_process_under_the_same_pid_is_another_owner():
    owner = current_owner("r")
    assert owner_is_dead(replace(owner, started=owner.started - 1), time.time(), time.time())


def test_a_zombie_is_dead():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        text = Path(f"/proc/{child.pid}/stat").read_text()
        owner = replace(
            current_owner("r"), pid=child.pid, started=int(text.rpartition(")")[2].split()[19])
        )
        assert not owner_is_dead(owner, 0.0, time.time())
        child.kill()
        deadline = time.monotonic() + 5
        while not owner_is_dead(owner, 0.0, time.time()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert owner_is_dead(owner, 0.0, time.time())  # nobody has waited for it yet
    assert owner_is_dead(owner, 0.0, time.time())


def test_of_what_cannot_be_told_nothing_is_dead():
    owner = current_owner("r")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))  # nothing more can be opened
    try:
        dead = owner_is_dead(owner, 0.0, time.time())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not dead


def test_another_boot_or_namespace_goes_by_age():
    now = time.time()
    for other in (
        replace(current_owner("r"), boot="other"),
        replace(current_owner("r"), namespace="1"),
    ):
        assert not owner_is_dead(other, now - FOREIGN_AGE + 60, now)
        assert owner_is_dead(other, now - FOREIGN_AGE - 60, now)


def test_labels_there_and_back():
    owner = current_owner("run-1")
    labels = owner_labels(owner, 12.5)
    assert owner_from_labels({**labels, "other": "x"}) == (owner, 12.5)
    assert all(isinstance(value, str) for value in labels.values())


def test_labels_that_are_not_ours():
    labels = owner_labels(current_owner("r"), 1.0)
    assert owner_from_labels({}) is None
    for key in labels:
        assert owner_from_labels({k: v for k, v in labels.items() if k != key}) is None
    assert owner_from_labels({**labels, "org.pytest-sandbox.pid": "x"}) is None
