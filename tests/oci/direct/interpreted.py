"""What test_interpreted runs where files of memory cannot be executed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from pytest_sandbox.errors import MissingDirectory, SandboxTimeout, UnknownUser
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import SandboxSpec
from pytest_sandbox.runtimes.oci.launchers.direct import program
from pytest_sandbox.runtimes.oci.runtime import OciRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target, host_arch


def refused(error, call):
    try:
        call()
    except error:
        return True
    return False


def main(folder):
    runtime = OciRuntime(folder=Path(folder), launcher="direct")
    spec = SandboxSpec("base:1", Target("linux", host_arch(), "debian"), Limits(pids=64))
    system = runtime.start(spec, current_owner("interpreted"))
    other = runtime.start(spec, current_owner("interpreted"))

    def said(*words, **values):
        return system.run(["sh", "-c", *words], **values).stdout.strip()

    found = {
        "program": program.is_there(),
        "out": said("echo $WORD; id -u", env={"WORD": "x"}).split(),
        "status": system.run(["sh", "-c", "exit 7"]).returncode,
        "missing": system.run(["nonesuch"]).returncode,
        "input": system.run(["cat"], input=b"through").stdout,
        "long": said('echo "$#"', "sh", *["y" * 1000] * 400),
        "user": said("id -u", user="12:34"),
        "first": said("cat /proc/1/comm"),
        "score": said("cat /proc/self/oom_score_adj"),
        "capabilities": said("grep CapEff /proc/self/status").split()[-1],
        "folder": refused(MissingDirectory, lambda: system.run(["true"], cwd="/gone")),
        "unknown": refused(UnknownUser, lambda: system.run(["true"], user="gone")),
        "late": refused(
            SandboxTimeout, lambda: system.run(["sh", "-c", "sleep 77 & sleep 78"], timeout=1)
        ),
        "left": said("cat /proc/[0-9]*/comm").split().count("sleep"),
        "neighbour": other.run(["sh", "-c", "echo here"]).stdout,
    }
    began = time.monotonic()
    system.close()
    other.close()
    found["ended"] = time.monotonic() - began < 10
    runtime.close()
    print(json.dumps(found))


main(sys.argv[1])
