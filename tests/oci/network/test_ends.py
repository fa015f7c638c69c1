"""When a sandbox's network ends, and what is said where it cannot begin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sandbox.oci.network.ports import Port
from tests.oci.network.conftest import ROOT, as_user, attached
from tests.oci.requiring import program


def _alive(pids):
    living = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            living.append(pid)
    return living


def _gone(pids):
    end = time.monotonic() + 5
    while _alive(pids) and time.monotonic() < end:
        time.sleep(0.005)
    return not _alive(pids)


def test_it_ends_with_the_sandbox(box):
    pids = box.told["pids"]
    assert len(pids) == 2
    assert _alive(pids) == pids
    assert box.end() == []
    assert _gone(pids)


def test_it_ends_when_all_above_are_killed(user, stack):
    with attached(user, stacks=[stack], ports=[Port(80)]) as box:
        pids = [*box.told["pids"], box.told["box"]]
        assert _alive(pids) == pids
        box.process.kill()
        assert _gone(pids)


def test_the_stack_ends_with_its_keeper(box):
    keeper, other = box.told["pids"]
    os.kill(keeper, signal.SIGKILL)
    assert _gone([other])
    assert _alive([box.told["box"]])


def test_no_stack_at_all_is_said(user):
    with attached(user, stacks=["no-such-stack"]) as box:
        error = box.told["error"]
        assert error["problem"] == "network-stack-missing"
        assert error["what"].endswith("no-such-stack is not installed")
        assert "apt-get install slirp4netns" in error["next_step"]


@pytest.mark.parametrize(
    ("refused", "note"),
    [
        ("--enable-seccomp", "runs without seccomp: no --enable-seccomp here"),
        ("--enable-sandbox", "runs without its mount namespace: no --enable-sandbox here"),
    ],
)
def test_a_weaker_stack_is_noted(user, faults, place, refused, note):
    assert faults["slirp4netns"] == ""
    slirp = program("slirp4netns")
    script = place / "slirp4netns"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *{refused}*) echo "no {refused} here" >&2; exit 1;; esac\n'
        f'exec {slirp} "$@"\n'
    )
    script.chmod(0o755)
    with attached(user, stacks=["slirp4netns"], path=str(place)) as box:
        assert box.told["stack"] == "slirp4netns"
        assert [text.partition(" ")[2] for text in box.told["notes"]] == [note]


def test_the_next_stack_is_tried_with_the_device_free_again(user, faults, place):
    """The first one takes the device, is faulty, and is ended."""
    assert faults["slirp4netns"] == ""
    script = place / "pasta"
    script.write_text('#!/bin/sh\necho "it does not like this host" >&2\nexit 1\n')
    script.chmod(0o755)
    with attached(user, stacks=["pasta", "slirp4netns"], path=str(place)) as box:
        assert box.told["stack"] == "slirp4netns"
    with attached(user, stacks=["pasta"], path=str(place)) as box:
        assert box.told["error"]["problem"] == "network-stack-failed"
        assert "pasta: it does not like this host" in box.told["error"]["what"]


def test_a_faulty_pasta_is_replaced(user, faults):
    program("pasta", "passt")
    if "loses data" not in faults["pasta"]:
        pytest.skip("pasta is well here")
    with attached(user, stacks=["pasta", "slirp4netns"]) as box:
        assert box.told["stack"] == "slirp4netns"
        assert len(box.told["pids"]) == 2


def _closed_tun(mode):
    """Words that run a command with a /dev/net/tun of another mode, or none."""
    node = "mknod /dev/net/tun c 10 200 && chmod 0600 /dev/net/tun && " if mode else ""
    script = f'mount -t tmpfs none /dev/net && {node}exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


@pytest.mark.parametrize(("mode", "problem"), [(0o600, "tun-no-access"), (0, "tun-missing")])
def test_a_closed_tun_is_told_by_its_name(user, mode, problem):
    if os.geteuid() != 0:
        pytest.skip("only root can hide /dev/net/tun")
    before = _closed_tun(mode)
    with attached(user, stacks=["slirp4netns"], before=before) as box:
        if user == "root" and mode:  # root makes itself a node, which nobody else sees
            assert box.told["stack"] == "slirp4netns"
            return
        error = box.told["error"]
        assert error["problem"] == problem
        step = "chmod 0666 /dev/net/tun" if mode else "modprobe tun"
        assert step in error["next_step"]
        assert len(box.told["children"]) <= 2  # the sandbox, and the keeper that is ending


PROBE = """
import json
from dataclasses import asdict
from pytest_sandbox.oci.network.probe import probe
print(json.dumps([asdict(found) for found in probe(every=EVERY)]))
"""


def _probe(user, before=(), *, every=False):
    code = PROBE.replace("EVERY", str(every))
    command = [*before, *as_user(user), sys.executable, "-c", code]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_probe_says_what_works(user, faults):
    whole, slirp, pasta = _probe(user, every=True)
    assert whole["id"] == "network-bridge"
    assert whole["ok"]
    assert "slirp4netns works" in whole["what"]
    assert slirp["ok"]
    assert slirp["id"] == "network-slirp4netns"
    assert pasta["ok"] == (faults["pasta"] == "")
    assert _probe(user) == [whole, slirp]  # the first that works is enough


def test_the_probe_names_a_closed_tun(user):
    if os.geteuid() != 0:
        pytest.skip("only root can hide /dev/net/tun")
    whole, slirp, *_ = _probe(user, _closed_tun(0o600))
    if user == "root":
        assert whole["ok"]
        return
    assert not whole["ok"]
    assert whole["id"] == slirp["id"] == "tun-no-access"
    assert "chmod 0666 /dev/net/tun" in whole["next_step"]
