"""What of a runtime spec a blank can be made from, before it is known what will run in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.cgroups import Layout
from pytest_sandbox.oci.seccomp_filter import deny, filter_for, split
from pytest_sandbox.oci.spec.mounts import under
from pytest_sandbox.runtimes.oci.launchers.direct import privileges
from pytest_sandbox.runtimes.oci.launchers.direct.command import way_of
from pytest_sandbox.runtimes.oci.launchers.direct.program import is_there

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pytest_sandbox.oci.cgroups import Cgroups
    from pytest_sandbox.runtimes.oci.launchers.direct.command import Way

_SYSTEM: Final = ("/proc", "/dev", "/sys")
_KNOWN: Final[Mapping[str, set[str]]] = {
    "": {
        *("ociVersion", "process", "root", "mounts", "annotations", "linux", "hostname"),
    },
    "process": {
        *("terminal", "user", "args", "env", "cwd", "capabilities", "rlimits", "consoleSize"),
        "noNewPrivileges",
    },
    "process.user": {"uid", "gid", "umask", "additionalGids"},
    "root": {"path", "readonly"},
    "linux": {
        *("uidMappings", "gidMappings", "namespaces", "maskedPaths", "readonlyPaths", "seccomp"),
        *("sysctl", "resources", "cgroupsPath"),
    },
    "linux.resources": {"memory", "cpu", "pids", "devices"},
    "linux.resources.memory": {"limit", "swap"},
    "linux.resources.cpu": {"quota", "period"},
    "linux.resources.pids": {"limit"},
}
_NAMESPACES: Final = {"user", "pid", "ipc", "uts", "mount", "cgroup", "network"}
_WANTED: Final = ("memory", "pids", "cpu", "cpuacct", "blkio")
"""The controllers of control groups v1 that limit a sandbox, or count what it uses: each tree takes
its time when a process is put into it. A v2 tree counts CPU time without cpuacct.
"""
_NEEDED: Final = (
    *("clone3", "mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr"),
    *("sethostname", "unshare"),
)
"""What process 1 does under its filter, and no command may: it makes mounts and takes its root, and
starts commands in their cgroups.
"""
_PROCESS: Final = ("user", "env", "capabilities", "rlimits", "noNewPrivileges")
_KEPT: Final = 8
_FILTERS: list[tuple[Mapping[str, Any], tuple[bytes, bytes]]] = []


class Profile(NamedTuple):
    """Everything that blanks of one kind have in common. `key` names it."""

    key: str
    mounts: tuple[dict[str, Any], ...]
    masked: tuple[str, ...]
    readonly: tuple[str, ...]
    sysctl: Mapping[str, str]
    network: bool
    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]
    hierarchies: tuple[tuple[str, str], ...]
    """(name of the folder, options of mount(2)) of each hierarchy of control groups v1 to show."""
    unified: str
    """Where the v2 tree is shown: "unified" below the others, "." alone; empty for nowhere."""
    limits: Mapping[str, float]
    """Those of the group: keywords of cgroups.limit."""
    bounding: tuple[str, ...]
    """The capabilities that nothing in the sandbox can have more than."""
    filter: bytes
    """The filter of process 1; what its commands must not do on top of that is in `way`."""
    process: Mapping[str, Any]
    """What process 1 and its commands have in common: parts of the spec's process."""
    way: Way
    """How commands are started."""
    guarded: bool
    """Process 1 is closed to all but the host's root."""
    inheritable: int
    """Capabilities that process 1 holds on to, as bits: the self-test's becomes the program late,
    and what is not in the bounding set is lost then. None for any other.
    """


def profile_of(
    spec: Mapping[str, Any],
    user: Mapping[str, Any],
    cgroups: Cgroups | None,
    filters: Path,
    *,
    guarded: bool,
    interpreted: bool = False,
) -> Profile:
    """The profile of a spec. `cgroups`: sandboxes get a group of their own; `filters` is the folder
    of compiled filters; `interpreted`: process 1 is a Python even if there is a program for it.
    Raises UsageError for what this launcher does not do.
    """
    check(spec)
    linux = spec["linux"]
    kinds = {entry["type"] for entry in linux["namespaces"]}
    system = tuple(one for one in spec["mounts"] if is_system(one))
    program, deny = _compiled(linux["seccomp"], filters)
    names, unified = _shown(cgroups)
    parts: dict[str, Any] = {
        "mounts": system,
        "masked": tuple(linux["maskedPaths"]),
        "readonly": tuple(linux["readonlyPaths"]),
        "sysctl": linux.get("sysctl", {}),
        "network": "network" in kinds,
        "uids": _ranges(linux["uidMappings"]),
        "gids": _ranges(linux["gidMappings"]),
        "hierarchies": names,
        "unified": unified,
        "bounding": tuple(sorted(spec["process"]["capabilities"]["bounding"])),
        "limits": _limits(linux.get("resources", {})) if cgroups is not None else {},
        "process": {name: spec["process"][name] for name in _PROCESS},
        "guarded": guarded,
        "inheritable": privileges.SYS_ADMIN if interpreted and is_there() else 0,
    }
    key = json.dumps([parts, user, hash(program), interpreted], sort_keys=True)
    way = way_of(
        spec["process"],
        user,
        deny,
        guarded=guarded,
        grouped=bool(cgroups and cgroups.unified),
        shared=is_there() and not interpreted,
    )
    return Profile(key=key, **parts, way=way, filter=program)


def _compiled(profile: Mapping[str, Any], filters: Path) -> tuple[bytes, bytes]:
    """The filter of a sandbox, and of each command on top of it: once for a profile that is the
    same object.
    """
    for known, found in _FILTERS:
        if known is profile:
            return found
    first, denied = split(profile, _NEEDED)
    found = filter_for(first, filters), deny(denied, profile["architectures"])
    _FILTERS.append((profile, found))
    del _FILTERS[:-_KEPT]
    return found


def is_system(mount: Mapping[str, Any]) -> bool:
    """Whether a mount of the spec is one of the system's own (/proc, /dev, /sys and in them)."""
    if mount["type"] == "bind":
        # With the host's network there is no sysfs of the sandbox's own.
        return bool(mount["destination"] == mount["source"] == "/sys")
    return under(mount["destination"], _SYSTEM)


def controllers(cgroups: Cgroups) -> list[str]:
    """The controllers whose groups a sandbox's processes are put into."""
    if cgroups.layout is Layout.V2:
        given = cgroups.given()
        return [name for name in ("memory", "pids", "cpu", "io") if name in given]
    spare = {"cpuacct"} if cgroups.unified else set()
    return [name for name in _WANTED if name in cgroups.controllers.keys() - spare]


def _shown(cgroups: Cgroups | None) -> tuple[tuple[tuple[str, str], ...], str]:
    if cgroups is None:
        return (), ""
    if cgroups.layout is Layout.V2:
        return (), "."
    found: dict[str, list[str]] = {}
    for name in controllers(cgroups):
        found.setdefault(cgroups.controllers[name].mount.name, []).append(name)
    shown = tuple((folder, ",".join(names)) for folder, names in found.items())
    return shown, "unified" if cgroups.unified else ""


def _limits(resources: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    if "memory" in resources:
        found["memory"] = resources["memory"]["limit"]
    if "pids" in resources:
        found["pids"] = resources["pids"]["limit"]
    if "cpu" in resources:
        found["cpus"] = resources["cpu"]["quota"] / resources["cpu"]["period"]
    return found


def _ranges(maps: Iterable[Mapping[str, int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((one["containerID"], one["hostID"], one["size"]) for one in maps)


def check(spec: Mapping[str, Any]) -> None:
    """Raises UsageError that names the first thing of the spec that this launcher does not do."""
    for where, known in _KNOWN.items():
        part: Any = spec
        for name in filter(None, where.split(".")):
            part = part.get(name, {})
        odd = sorted(set(part) - known)
        if odd:
            _undone(f"{where}.{odd[0]}".lstrip("."))
    if spec["process"].get("terminal"):
        _undone("process.terminal")
    linux = spec["linux"]
    for entry in linux["namespaces"]:
        if entry["type"] not in _NAMESPACES or "path" in entry:
            _undone(f"linux.namespaces {entry}")
    lacking = _NAMESPACES - {"network"} - {entry["type"] for entry in linux["namespaces"]}
    if lacking:
        _undone(f"a sandbox without a {min(lacking)} namespace")
    devices = linux.get("resources", {}).get("devices", [])
    if any(rule != {"allow": False, "access": "rwm"} for rule in devices):
        _undone("linux.resources.devices")
    if "seccomp" not in linux:
        _undone("a sandbox without linux.seccomp")
    for mount in spec["mounts"]:
        if mount["type"] not in {*("bind", "tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup")}:
            _undone(f"a mount of type {mount['type']}")


def _undone(what: str) -> NoReturn:
    msg = f"the direct launcher does not implement {what}"
    raise UsageError(msg, next_step="use --sandbox-launcher=runc")
