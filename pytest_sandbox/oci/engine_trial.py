"""An engine tried for real: one tiny container, with limits, in the sandboxes' ids.

A version or a list of features says little about a host: crun refuses hybrid control groups, a
container around us masks /proc, a security module forbids a mount. All of that shows here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.oci import cgroups as groups
from pytest_sandbox.oci.engines import SYSTEM_FOLDERS
from pytest_sandbox.oci.findings import Finding, install

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.oci.cgroup_access import Access
    from pytest_sandbox.oci.engines import Engine, Init
    from pytest_sandbox.oci.ids import IdSpace

_WAIT: Final = 20.0
_MEMORY: Final = 64 << 20
_PIDS: Final = 32
_QUOTA: Final = 50_000
_PERIOD: Final = 100_000
_FILES: Final = {
    # controller: the files that may hold the limit and what is in them then
    "memory": {"memory.limit_in_bytes": str(_MEMORY), "memory.max": str(_MEMORY)},
    "pids": {"pids.max": str(_PIDS)},
    "cpu": {"cpu.cfs_quota_us": str(_QUOTA), "cpu.max": f"{_QUOTA} {_PERIOD}"},
}
_MEANINGS: Final = (
    # words of an engine: the stable id, what it means, what to do
    (
        ("cgroups in hybrid mode not supported", "unknown cgroup"),
        "engine-hybrid",
        "it refuses hybrid control groups",
        f"use runc ({install('runc')}), or boot with systemd.unified_cgroup_hierarchy=1",
    ),
    (
        ('mounting "proc"', "mount proc", "mount `proc`", "mount_proc"),
        "masked-proc",
        "/proc cannot be mounted: a container around us masks its own",
        "start the outer container with --security-opt systempaths=unconfined",
    ),
    (
        ("newuidmap", "newgidmap"),
        "newuidmap-refused",
        "newuidmap refuses the ids",
        "look at /etc/subuid and /etc/subgid",
    ),
    (
        ("seccomp",),
        "engine-seccomp",
        "system call filters cannot be set",
        "install an engine that is built with libseccomp",
    ),
    (
        ("cgroup",),
        "engine-cgroup",
        "it cannot use the control groups",
        "run as root on the host, or with a delegated group (see the findings on control groups)",
    ),
)


@dataclass(frozen=True, slots=True)
class EngineTrial:
    """How it went. `limits` are the controllers whose limit was set and read back; `failed` is
    empty if the container ran.
    """

    limits: frozenset[str] = frozenset()
    failed: str = ""
    problem: str = ""
    next_step: str = ""

    def finding(self, engine: Engine) -> Finding:
        """The same for doctor."""
        name = f"{engine.name} {engine.text}"
        if self.failed:
            what = f"{name} ({engine.path}) cannot run a container here: {self.failed}"
            return Finding(self.problem, False, what, self.next_step, fatal=True)
        limits = f"limits {', '.join(sorted(self.limits))}" if self.limits else "sets no limits"
        return Finding("engine", True, f"{name} ({engine.path}) runs containers, {limits}")


def try_engine(engine: Engine, init: Init, ids: IdSpace, access: Access) -> EngineTrial:
    """Create a container whose only process is the init saying its version; look at its limits;
    start it and read what it says; delete it.
    """
    name = f"probe-{os.getpid()}-{secrets.token_hex(4)}"
    place = Path(tempfile.mkdtemp(prefix="pytest-sandbox-probe-"))
    paths = access.cgroups.paths(name)
    try:
        _bundle(place, init, ids, access, name)
        return _try(_Cli(engine, place, name), access, paths)
    finally:
        groups.kill(paths, wait=5)
        groups.remove(paths)
        access.cgroups.tidy()
        shutil.rmtree(place, ignore_errors=True)


def _bundle(place: Path, init: Init, ids: IdSpace, access: Access, name: str) -> None:
    # The sandbox's root must be able to walk to its files; there is nothing secret in them.
    place.chmod(0o711)
    root = place / "rootfs"
    for folder in (root, root / "proc", root / "dev"):
        folder.mkdir()
        folder.chmod(0o755)  # whatever our umask is
    (root / "init").touch()
    (root / "init").chmod(0o755)
    (place / "config.json").write_text(json.dumps(_spec(init, ids, access, name)))


def _spec(init: Init, ids: IdSpace, access: Access, name: str) -> dict[str, Any]:
    def mapped(ranges: Sequence[tuple[int, int, int]]) -> list[dict[str, int]]:
        names = ("containerID", "hostID", "size")
        return [dict(zip(names, one, strict=True)) for one in ranges]

    resources: dict[str, Any] = {}
    if "memory" in access.usable:
        resources["memory"] = {"limit": _MEMORY}
    if "pids" in access.usable:
        resources["pids"] = {"limit": _PIDS}
    if "cpu" in access.usable:
        resources["cpu"] = {"quota": _QUOTA, "period": _PERIOD}
    kinds = ("pid", "ipc", "uts", "mount", "network", "user", "cgroup")
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "uidMappings": mapped(ids.uids),
        "gidMappings": mapped(ids.gids),
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
    }
    if resources:
        # With a path, an engine fails where an ordinary user has no group; without one it goes on.
        linux |= {"resources": resources, "cgroupsPath": access.cgroups.paths(name).engine_path}
    options = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    return {
        "ociVersion": "1.0.2",
        "hostname": "probe",
        "root": {"path": "rootfs", "readonly": True},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/init", "--version"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options},
            {
                "destination": "/init",
                "type": "bind",
                "source": str(init.path),
                "options": ["bind", "ro"],
            },
        ],
        "linux": linux,
    }


class _Cli:
    """The commands of the engine, all its state below `place`."""

    def __init__(self, engine: Engine, place: Path, name: str) -> None:
        self._engine = engine
        self._place = place
        self._name = name
        # runc calls newuidmap by its name.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin", *SYSTEM_FOLDERS])
        self._environ = {"PATH": path, "XDG_RUNTIME_DIR": str(place)}

    def run(self, command: str, *words: str, output: int = subprocess.DEVNULL) -> str:
        """What the engine complains of; empty if nothing. Raises TimeoutExpired."""
        log = self._place / f"{command}.log"
        nothing = self._place / "nothing"
        nothing.touch()
        # Not /dev/null: older crun gives its stdin, the device itself, to the sandbox's root.
        with log.open("wb") as errors, nothing.open("rb") as empty:
            done = subprocess.run(
                [
                    *(self._engine.path, "--root", self._place / "state"),
                    *(command, *words, self._name),
                ],
                stdin=empty,
                stdout=output,
                stderr=errors if output == subprocess.DEVNULL else output,
                env=self._environ,
                cwd=self._place,
                timeout=_WAIT,
                check=False,
            )
        if done.returncode == 0:
            return ""
        return _last(log.read_text(errors="replace")) or f"exit status {done.returncode}"


def _try(cli: _Cli, access: Access, paths: groups.GroupPaths) -> EngineTrial:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    limits: set[str] = set()
    try:
        wrong = cli.run("create", output=writer)
        os.close(writer)
        writer = -1
        if not wrong:
            limits = {one for one in access.usable if _is_set(paths, one)}
            wrong = cli.run("start")
        said = _read(reader)
        if wrong:
            return _failed(wrong if "exit status" not in wrong else _last(said) or wrong)
        if "tini" not in said:
            return _failed(f"its process said {said!r}")
    except subprocess.TimeoutExpired:
        return EngineTrial(
            frozenset(),
            f"it did not answer within {_WAIT:g} s",
            "engine-hangs",
            "install a newer engine",
        )
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            cli.run("delete", "--force")
    return EngineTrial(frozenset(limits))


def _is_set(paths: groups.GroupPaths, controller: str) -> bool:
    folder = paths.controllers.get(controller)
    if folder is None:
        return False
    for name, expected in _FILES[controller].items():
        with contextlib.suppress(OSError):
            if (folder / name).read_text().strip() == expected:
                return True
    return False


def _read(reader: int) -> str:
    """What came through the pipe until its end, or the end of our patience."""
    os.set_blocking(reader, False)
    data, until = b"", time.monotonic() + _WAIT
    while time.monotonic() < until:
        try:
            part = os.read(reader, 4096)
        except BlockingIOError:
            time.sleep(0.002)
            continue
        if not part:
            break
        data += part
    return data.decode("utf-8", "replace").strip()


def _last(text: str) -> str:
    """An engine's message without its log format."""
    lines = [line for line in text.splitlines() if line.strip()]
    chosen = next((line for line in reversed(lines) if "level=error" in line), "")
    line = chosen or (lines[-1] if lines else "")
    _, quoted, message = line.partition('msg="')
    return (message.rstrip('"').replace('\\"', '"') if quoted else line).strip()


def _failed(text: str) -> EngineTrial:
    for words, problem, meaning, step in _MEANINGS:
        if any(word in text for word in words):
            return EngineTrial(frozenset(), f"{meaning} ({text})", problem, step)
    step = "run pytest-sandbox doctor --json and look at what the engine said"
    return EngineTrial(frozenset(), text, "engine-fails", step)
