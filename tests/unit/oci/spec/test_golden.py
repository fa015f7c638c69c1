"""Whole specs, to the letter: an ordinary user with one id, one with a full map, and root.

The system calls of the seccomp profile are not repeated in them (test_seccomp has those).
PYTEST_SANDBOX_WRITE_GOLDEN=1 writes the files anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_sandbox.oci.config import parse_image_config
from pytest_sandbox.oci.etc_files import engine_binds
from pytest_sandbox.oci.ids import Range
from pytest_sandbox.oci.spec.generate import Overrides, generate
from pytest_sandbox.oci.spec.mounts import Bind
from pytest_sandbox.oci.spec.resources import ResourceLimits
from pytest_sandbox.oci.spec.root import Prepared
from pytest_sandbox.oci.spec.users import User

FOLDER = Path(__file__).parent / "golden"
INIT = "/dev/.sandbox-init"
CONFIG = parse_image_config(
    {
        "os": "linux",
        "architecture": "amd64",
        "author": "somebody",
        "config": {
            "Env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
            "Entrypoint": ["/entry"],
            "Cmd": ["serve"],
            "WorkingDir": "/srv",
            "User": "app",
            "StopSignal": "SIGINT",
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/data": {}},
            "Labels": {"vendor": "example"},
        },
    }
)
ROOT, APP = User(0, 0, (), "/root", "root"), User(1000, 1000, (44,), "/home/app", "app")
GOLDEN: dict[str, dict[str, Any]] = {
    "rootless-single-map": {
        "prepared": Prepared(ROOT, {"/data": "/data"}),
        "uid_map": [Range(0, 1000, 1)],
        "gid_map": [Range(0, 1000, 1)],
        "rootless": True,
        "network": "host",
    },
    "rootless-full-map": {
        "prepared": Prepared(APP, {"/data": "/data", "/src": "/src"}),
        "uid_map": [Range(0, 1000, 1), Range(1, 100000, 65536)],
        "gid_map": [Range(0, 1000, 1), Range(1, 100000, 65536)],
        "rootless": True,
        "network": "bridge",
        "engine_files": [*engine_binds("/room/etc"), Bind("/usr/bin/init", INIT, folder=False)],
        "init": [INIT, "-p", "SIGKILL", "--"],
        "mounts": [Bind("/home/somebody/src", "/src")],
        "extra_rlimits": {"RLIMIT_AS": 1 << 30},
        "overrides": Overrides(argv=["check"], env=["A=b"], tty=True, hostname="box"),
    },
    "root": {
        "prepared": Prepared(APP, {"/data": "/data"}),
        "uid_map": [Range(0, 0x7A000000, 65536)],
        "gid_map": [Range(0, 0x7A000000, 65536)],
        "engine_files": [*engine_binds("/room/etc"), Bind("/usr/bin/init", INIT, folder=False)],
        "init": [INIT, "-p", "SIGKILL", "--"],
        "limits": ResourceLimits(memory=512 << 20, cpus=1.5, pids=100, nofile=256),
        "cgroups_path": "/pytest-sandbox/one",
        "tmpfs": {"/tmp": 64 << 20},
        "read_only": True,
        "overrides": Overrides(no_new_privileges=True, hostname="box", cwd="/"),
    },
}


def golden_spec(name: str) -> dict[str, Any]:
    """The spec of one golden case, with all its parts."""
    return generate(
        CONFIG,
        root="rootfs",
        architecture="amd64",
        kernel="6.1.0",
        hard_nofile=20_000,
        **GOLDEN[name],
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    spec = golden_spec(name)
    # The profile is shared: what is compared is a copy.
    profile = dict(spec["linux"]["seccomp"])
    assert len(profile.pop("syscalls")) > 10
    spec["linux"]["seccomp"] = profile
    file = FOLDER / f"{name}.json"
    if os.environ.get("PYTEST_SANDBOX_WRITE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(spec, indent=2) + "\n")
    assert spec == json.loads(file.read_text())
