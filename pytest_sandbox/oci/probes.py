"""The probe matrix: what this host can do, tried, with one diagnosis and one remedy each.

The answers are kept in the store for one boot, kernel, user and set of programs; all of them
together take about half a second.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.oci.cgroup_access import LIMITS, Access, try_cgroups
from pytest_sandbox.oci.cgroups import find_cgroups
from pytest_sandbox.oci.engines import (
    NAMES,
    Engine,
    Init,
    find_engine,
    find_init,
    find_program,
)
from pytest_sandbox.oci.findings import Finding, Lacking
from pytest_sandbox.oci.ids import IdSpace, NoIds
from pytest_sandbox.oci.lifetimes import boot_id
from pytest_sandbox.oci.probe_namespaces import inside_container, lacking, probe_namespaces
from pytest_sandbox.oci.store.files import read_json, write_json
from pytest_sandbox.oci.versions import parse_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.oci.store import Store

FILE: Final = "host.json"
_FORMAT: Final = 2
_PROGRAMS: Final = (*NAMES, "tini-static", "docker-init", "tini", "newuidmap", "newgidmap")
_MORE_PROGRAMS: Final = ("slirp4netns", "pasta", "fuse-overlayfs")


@dataclass(frozen=True, slots=True)
class Host:
    """What sandboxes have here. Empty texts: not found, and a finding says why.

    `limits` are the controllers (`memory`, `pids`, `cpu`) whose limits the engine really sets, in
    groups below `cgroups_base`; without any, the engine must get no cgroupsPath at all.
    """

    engine: str = ""
    engine_name: str = ""
    engine_version: str = ""
    init: str = ""
    init_version: str = ""
    cgroups: str = ""
    cgroups_base: str = ""
    limits: tuple[str, ...] = ()
    snapshotter: str = ""
    network: bool = False
    backported: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        """Can sandboxes run at all?"""
        return why_not(self.findings) is None

    def tools(self) -> tuple[Engine, Init, Access]:
        """Engine, init and control groups as they were found; nothing is run or tried again.

        Raises Lacking where sandboxes cannot run.
        """
        if stopped := why_not(self.findings):
            raise Lacking(stopped.what, problem=stopped.id, next_step=stopped.next_step)
        version = parse_version(self.engine_version)
        assert version is not None
        engine = Engine(
            self.engine_name,
            Path(self.engine),
            version,
            self.engine_version,
            frozenset(self.backported),
        )
        wrong = next((one for one in self.findings if one.id.startswith("cgroup-")), None)
        access = Access(
            find_cgroups().below(self.cgroups_base),
            frozenset(self.limits),
            tuple(one for one in LIMITS if one not in self.limits),
            wrong.id if wrong else "",
            wrong.what if wrong else "",
            wrong.next_step if wrong else "",
        )
        return engine, Init(Path(self.init), self.init_version), access


def why_not(findings: Sequence[Finding]) -> Finding | None:
    """The first thing that keeps sandboxes from running; None if nothing does."""
    return next((one for one in findings if not one.ok and one.fatal), None)


def probe_all(
    store: Store,
    *,
    engine: str = "",
    init: str = "",
    snapshotter: str = "auto",
    environ: Mapping[str, str] | None = None,
    fresh: bool = False,
    thorough: bool = False,
) -> Host:
    """Everything, or what is known of this boot. `fresh` tries again.

    `engine` and `init` are names or paths that were asked for. Nothing is raised for what does
    not work: it is among the findings. Unless it is `thorough`, the first thing that keeps
    sandboxes from running ends it.
    """
    environ = os.environ if environ is None else environ
    try:
        ids = store.caller.ids
    except NoIds as wrong:
        return Host(findings=(lacking(wrong),))
    key = _key(ids, [engine, init, snapshotter], store.root, environ)
    kept = None if fresh else _kept(store.root / FILE, key)
    if kept is not None:
        return kept
    look = _Look(store, ids, environ, fresh=fresh)
    for step in (
        look.namespaces,
        lambda: look.programs(engine, init),
        look.groups,
        look.trial,
        lambda: look.root(snapshotter),
        look.network,
    ):
        if thorough or look.host.usable:
            step()
    if look.host.usable:  # what failed is looked at again: the next step may have been taken
        write_json(store.root / FILE, {"key": key, "host": asdict(look.host)})
    return look.host


class _Look:
    """The probes, the cheap ones first; each adds to `host` what it found. What they need is loaded
    by them: mostly it is all known already.
    """

    def __init__(
        self, store: Store, ids: IdSpace, environ: Mapping[str, str], *, fresh: bool
    ) -> None:
        self.host = Host()
        self._store = store
        self._ids = ids
        self._environ = environ
        self._fresh = fresh
        self._engine: Engine | None = None
        self._init: Init | None = None
        self._access: Access | None = None
        self._namespaces = False

    def _add(self, *findings: Finding, **fields: Any) -> None:
        self.host = replace(self.host, findings=(*self.host.findings, *findings), **fields)

    def namespaces(self) -> None:
        if place := inside_container():
            what = f"this looks like the inside of a container ({place}), which may forbid things"
            self._add(Finding("inside-container", True, what))
        found = probe_namespaces(self._ids)
        self._namespaces = found.ok
        self._add(found)

    def programs(self, engine: str, init: str) -> None:
        try:
            found = self._engine = find_engine(engine, self._environ)
            self._add(
                *found.findings(),
                engine=str(found.path),
                engine_name=found.name,
                engine_version=found.text,
                backported=tuple(sorted(found.backported)),
            )
        except Lacking as wrong:
            self._add(wrong.finding)
        try:
            self._init = find_init(init, self._environ)
            self._add(init=str(self._init.path), init_version=self._init.text)
        except Lacking as wrong:
            self._add(wrong.finding)

    def groups(self) -> None:
        """Without control groups, limits are enforced in weaker ways: never fatal."""
        access = self._access = try_cgroups()
        base = access.cgroups.base
        if access.problem:
            found = Finding(access.problem, False, access.what, access.next_step)
        else:
            where = f" below /{base}" if base else ""
            names = ", ".join(sorted(access.usable))
            what = f"control groups {access.cgroups.layout}{where}: {names}"
            found = Finding("cgroups", True, what)
        self._add(found, cgroups=str(access.cgroups.layout), cgroups_base=base)

    def trial(self) -> None:
        if not (self._namespaces and self._engine and self._init and self._access):
            return
        from pytest_sandbox.oci.engine_trial import try_engine

        trial = try_engine(self._engine, self._init, self._ids, self._access)
        self._add(trial.finding(self._engine), limits=tuple(sorted(trial.limits)))

    def root(self, wanted: str) -> None:
        if not self._namespaces:
            return
        from pytest_sandbox.oci.snapshots.choose import choose

        try:
            choice = choose(self._store, wanted, fresh=self._fresh)
        except SandboxError as wrong:
            problem = getattr(wrong, "problem", "") or (
                "no-snapshotter" if wanted == "auto" else f"no-{wanted}"
            )
            self._add(Finding(problem, False, wrong.what, wrong.next_step, fatal=True))
        else:
            self._add(*choice.findings(), snapshotter=choice.name)

    def network(self) -> None:
        if not self._namespaces:
            return
        from pytest_sandbox.oci.probe_network import probe_network

        try:
            found = probe_network(self._store.caller)
        except (SandboxError, OSError) as wrong:
            what = wrong.what if isinstance(wrong, SandboxError) else str(wrong)
            step = "use --network=none or --network=host"
            found = Finding("network-stack-failed", False, what, step)
        self._add(found, network=found.ok)


def _key(
    ids: IdSpace, given: Sequence[str], root: Path, environ: Mapping[str, str]
) -> dict[str, Any]:
    """What the answers depend on."""
    programs = {}
    for name in (*_PROGRAMS, *_MORE_PROGRAMS, *given):
        path = Path(name) if "/" in name else find_program(name, environ) if name else None
        if path and path.exists():
            found = path.stat()
            programs[str(path)] = [found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid]
    group = Path("/proc/self/cgroup")
    return {
        "format": _FORMAT,
        "boot": boot_id(),
        "kernel": os.uname().release,
        "user": [os.geteuid(), ids.key()],
        "given": list(given),
        "programs": programs,
        "groups": group.read_text(errors="replace") if group.exists() else "",
        "device": root.stat().st_dev,
        "namespace": Path("/proc/self/ns/user").stat().st_ino,
    }


def _kept(file: Path, key: dict[str, Any]) -> Host | None:
    found = read_json(file)
    if found is None or found.get("key") != key:
        return None
    try:
        told = dict(found["host"])
        told["findings"] = tuple(Finding(**one) for one in told["findings"])
        for name in ("limits", "backported"):
            told[name] = tuple(told[name])
        return Host(**told)
    except (KeyError, TypeError):
        return None
