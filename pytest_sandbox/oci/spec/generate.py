"""`generate`: the whole runtime spec (config.json) of one sandbox."""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.platforms import host_platform
from pytest_sandbox.oci.spec import mounts as mounting
from pytest_sandbox.oci.spec import process
from pytest_sandbox.oci.spec.capabilities import DEFAULT, capabilities
from pytest_sandbox.oci.spec.resources import ResourceLimits, resources, rlimits
from pytest_sandbox.oci.spec.seccomp import seccomp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_sandbox.oci.config import ImageConfig
    from pytest_sandbox.oci.ids import Range
    from pytest_sandbox.oci.spec.mounts import Bind
    from pytest_sandbox.oci.spec.root import Prepared

NetworkMode = Literal["none", "bridge", "host"]
VERSION: Final = "1.0.2"
"""The runtime spec's version: the one that runc 1.1 and crun 1.8 implement. Nothing newer is
used.
"""
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Overrides(NamedTuple):
    """What the caller changes of the image's process.

    `argv` replaces Cmd; `entrypoint`, where it is not None, replaces Entrypoint and drops Cmd.
    `env` holds `NAME=VALUE`, or `NAME` alone to remove it. "" keeps the image's `cwd` and
    `stop_signal` (`user` goes to `root_request`). `hostname` is that of the sandbox.
    """

    argv: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    env: Sequence[str] = ()
    cwd: str = ""
    tty: bool = False
    hostname: str = ""
    no_new_privileges: bool = False
    stop_signal: str = ""


NO_OVERRIDES: Final = Overrides()
NO_LIMITS: Final = ResourceLimits()


def generate(
    config: ImageConfig,
    prepared: Prepared,
    *,
    root: str,
    uid_map: Sequence[Range],
    gid_map: Sequence[Range],
    overrides: Overrides = NO_OVERRIDES,
    network: NetworkMode = "none",
    limits: ResourceLimits = NO_LIMITS,
    extra_rlimits: Mapping[str, int] | None = None,
    mounts: Sequence[Bind] = (),
    engine_files: Sequence[Bind] = (),
    tmpfs: Mapping[str, int] | None = None,
    read_only: bool = False,
    init: Sequence[str] = (),
    rootless: bool = False,
    cgroups_path: str = "",
    swap: bool = True,
    architecture: str = "",
    kernel: str = "",
    native_only: bool = False,
    hard_nofile: int | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The runtime spec of one sandbox, ready for config.json.

    - `prepared` is the answer of the job `spec.root:prepare` for the same config and mounts.
    - `root` is the root file system's path as the runtime sees it (absolute, or relative to the
      bundle).
    - `uid_map` and `gid_map` map the sandbox's ids: there is always a user namespace.
    - `network`: "none" and "bridge" get a network namespace, "host" does not.
    - `limits` are set as they are given, and no others. `rootless` is for a host without a cgroup
      of ours: memory, cpus and pids are errors then, and no cgroup is named. `extra_rlimits` (name
      -> value) is the weaker enforcement.
    - `mounts` are the caller's, `engine_files` ours (hosts, hostname, resolv.conf, passwd): a
      caller's mount at the same place wins. `tmpfs` is path -> bytes.
    - `init` goes in front of the command; its program is one of `engine_files`.
    - `swap`, `native_only`, `hard_nofile`: see resources.resources, seccomp.seccomp and
      resources.rlimits. `architecture` (Go's name) and `kernel` are the host's where empty.

    Raises UsageError for what the caller has to mend, InvalidImage for the image.
    """
    user = prepared.user
    _check_ids("user", [user.uid], uid_map)
    _check_ids("group", [user.gid, *user.groups], gid_map)
    if overrides.hostname and not _HOSTNAME.fullmatch(overrides.hostname):
        msg = f"{overrides.hostname!r} is no host name"
        raise UsageError(msg, next_step="letters, digits, dots and hyphens, at most 64")
    if rootless and limits.in_cgroup():
        msg = f"there is no cgroup for {', '.join(limits.in_cgroup())}"
        raise UsageError(msg, next_step="allow weaker enforcement, or leave the limit out")
    own_network = network != "host"
    argv = process.arguments(config, overrides.argv, overrides.entrypoint)
    spec: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": {
            "terminal": overrides.tty,
            "user": {"uid": user.uid, "gid": user.gid, "umask": 0o022},
            "args": [*init, *argv],
            "env": process.environment(
                config,
                overrides.env,
                hostname=overrides.hostname,
                home=user.home,
                tty=overrides.tty,
            ),
            "cwd": process.working_dir(config, overrides.cwd),
            "capabilities": capabilities(user.uid),
            "rlimits": rlimits(limits, extra_rlimits, hard_nofile=hard_nofile),
            "noNewPrivileges": overrides.no_new_privileges,
        },
        "root": {"path": root, "readonly": read_only},
        "mounts": _mounts(
            config,
            prepared,
            system=mounting.system_mounts(
                own_network=own_network, tty_group=_mapped(mounting.TTY_GROUP, gid_map)
            ),
            root=root if read_only else "",
            engine=engine_files,
            caller=mounts,
            tmpfs=tmpfs or {},
        ),
        "annotations": process.image_annotations(config, overrides.stop_signal, annotations),
        "linux": {
            "uidMappings": _mappings(uid_map),
            "gidMappings": _mappings(gid_map),
            "namespaces": [
                {"type": kind}
                for kind in ("user", "pid", "ipc", "uts", "mount", "cgroup", "network")
                if own_network or kind != "network"
            ],
            "maskedPaths": list(mounting.MASKED),
            "readonlyPaths": list(mounting.READ_ONLY),
        },
    }
    if user.groups:
        spec["process"]["user"]["additionalGids"] = list(user.groups)
    if overrides.hostname:
        spec["hostname"] = overrides.hostname
    if own_network:
        spec["linux"]["sysctl"] = {
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.ping_group_range": f"0 {_last_id(gid_map)}",
        }
    if not rootless:
        spec["linux"]["resources"] = resources(limits, swap=swap)
        if cgroups_path:
            spec["linux"]["cgroupsPath"] = cgroups_path
    check_texts(spec)
    spec["linux"]["seccomp"] = seccomp(
        architecture or host_platform().architecture,
        kernel or os.uname().release,
        DEFAULT,
        native_only=native_only,
    )
    return spec


def _mounts(
    config: ImageConfig,
    prepared: Prepared,
    *,
    system: list[dict[str, Any]],
    root: str,
    engine: Sequence[Bind],
    caller: Sequence[Bind],
    tmpfs: Mapping[str, int],
) -> list[dict[str, Any]]:
    """`root` is given where volumes need mounts of their own (mounts.volume_mounts)."""

    def place(target: str) -> str:
        normal = mounting.check_target(target)
        return prepared.places.get(normal, normal)

    def entry(bind: Bind) -> dict[str, Any]:
        return {**bind.entry(), "destination": place(bind.target)}

    own = [entry(bind) for bind in engine]
    if root:
        wanted = {p: real for p in process.volumes(config) if (real := prepared.places.get(p))}
        own = [*mounting.volume_mounts(root, wanted), *own]
    chosen = [mounting.tmpfs_mount(place(path), size) for path, size in tmpfs.items()]
    return mounting.assemble(system, own, [*chosen, *(entry(bind) for bind in caller)])


def _mapped(number: int, ranges: Iterable[Range]) -> bool:
    return any(r.inside <= number < r.inside + r.size for r in ranges)


def _last_id(ranges: Sequence[Range]) -> int:
    """The end of the run of mapped ids that begins at 0."""
    end = 0
    for found in sorted(ranges):
        if found.inside == end:
            end += found.size
    return max(end - 1, 0)


def _check_ids(what: str, ids: Iterable[int], ranges: Sequence[Range]) -> None:
    if not ranges or not _mapped(0, ranges):
        msg = f"no id map for {what}s, or one without 0"
        raise UsageError(msg, next_step="map at least the sandbox's root")
    for number in ids:
        if not _mapped(number, ranges):
            known = ", ".join(f"{r.inside}-{r.inside + r.size - 1}" for r in ranges)
            msg = f"the {what} {number} is outside of the sandbox's ids ({known})"
            raise UsageError(msg, next_step=f"choose a {what} inside")


def _mappings(ranges: Iterable[Range]) -> list[dict[str, int]]:
    return [{"containerID": r.inside, "hostID": r.outside, "size": r.size} for r in ranges]


def check_texts(value: Any, where: str = "") -> None:
    """Refuse what a runtime would cut short or change: NUL, and bytes that are not UTF-8 (JSON has
    no way to say them; runtimes put another character in their place). Raises UsageError.
    """
    if isinstance(value, str):
        problem = ""
        if "\0" in value:
            problem = "holds a NUL byte"
        elif not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                problem = "is not UTF-8, and a runtime spec can hold nothing else"
        if problem:
            msg = f"{where}: {value[:80]!r} {problem}"
            raise UsageError(msg, next_step="leave it out, or pass it in a file")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_texts(key, f"a key of {where}")
            check_texts(item, posixpath.join(where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_texts(item, f"{where}[{index}]")
