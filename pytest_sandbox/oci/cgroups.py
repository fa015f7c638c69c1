"""Control groups: where they are, and the groups of sandboxes in them (cgroups(7)).

A sandbox's group is `pytest-sandbox/<id>` at the top of each hierarchy (v1), or below the group
that this process may use (v2). The engine makes it; this module reads, kills and removes it, and
can make one itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PARENT: Final = "pytest-sandbox"
"""The group that the groups of all sandboxes are in."""
_PERIOD: Final = 100_000
"""Microseconds of one period of the cpu controller."""


class Layout(StrEnum):
    """How control groups are mounted. HYBRID: controllers in v1, and a v2 tree without them."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"


class Hierarchy(NamedTuple):
    """One mounted tree. `own` is the group of this process below `mount`; empty for its top."""

    mount: Path
    version: int
    own: str = ""


class GroupPaths(NamedTuple):
    """The group of one sandbox.

    `engine_path` is what an engine gets as cgroupsPath; `controllers` has the folder of each
    controller (v2: the same one for all), `unified` the v2 folder if there is a v2 tree, `every`
    all folders once.
    """

    name: str
    engine_path: str
    controllers: Mapping[str, Path]
    unified: Path | None
    every: tuple[Path, ...]

    def exists(self) -> bool:
        """Is any of its folders there?"""
        return any(folder.is_dir() for folder in self.every)


class Cgroups(NamedTuple):
    """What is mounted. `base` is the group below which ours are made; empty for the top.

    `controllers`: of v1 the name of each (`memory`, `cpuacct`, `name=systemd`, ...), of v2 those
    that the top lists (`memory`, `io`, ...).
    """

    layout: Layout
    controllers: Mapping[str, Hierarchy]
    unified: Hierarchy | None = None
    base: str = ""

    def below(self, base: str) -> Cgroups:
        """The same, with the groups of sandboxes below `base`."""
        return self._replace(base=base.strip("/"))

    def paths(self, name: str) -> GroupPaths:
        """The group of the sandbox `name`, whether it is there or not."""
        below = f"{self.base}/{PARENT}/{name}".lstrip("/")
        controllers = {key: tree.mount / below for key, tree in self.controllers.items()}
        unified = self.unified.mount / below if self.unified else None
        every = dict.fromkeys([*controllers.values(), *([unified] if unified else [])])
        return GroupPaths(name, f"/{below}", controllers, unified, tuple(every))

    def folder(self, controller: str, name: str) -> str:
        """The folder of one controller of the sandbox `name`; empty without that controller."""
        tree = self.controllers.get(controller)
        below = f"{self.base}/{PARENT}/{name}".lstrip("/")
        return f"{tree.mount}/{below}" if tree is not None else ""

    def given(self) -> frozenset[str]:
        """The controllers that groups of sandboxes can have: a delegated group of v2 has fewer than
        the top (systemd gives users no `io`).
        """
        if self.layout is not Layout.V2 or self.unified is None or not self.base:
            return frozenset(self.controllers)
        listed = _read(self.unified.mount / self.base / "cgroup.controllers").split()
        return frozenset(self.controllers).intersection(listed)

    def names(self) -> list[str]:
        """The groups that are there below ours, of whatever session, sorted."""
        found: set[str] = set()
        for parent in self._parents():
            with contextlib.suppress(OSError), os.scandir(parent) as entries:
                found.update(entry.name for entry in entries if entry.is_dir())
        return sorted(found)

    def tidy(self) -> None:
        """Remove the parent group where nothing is left in it."""
        for parent in self._parents():
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _parents(self) -> Iterable[Path]:
        trees = [*self.controllers.values(), *([self.unified] if self.unified else [])]
        return dict.fromkeys(tree.mount / self.base / PARENT for tree in trees)


def find_cgroups(proc: Path = Path("/proc/self")) -> Cgroups:
    """What is mounted for this process, from its mountinfo and cgroup files (proc(5))."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (proc / "cgroup").read_text(errors="surrogateescape").splitlines():
            _, names, path = line.split(":", 2)
            own.update(dict.fromkeys(names.split(","), path))
    controllers: dict[str, Hierarchy] = {}
    unified: Hierarchy | None = None
    for mount, root, kind, options in _mounts(proc):
        if kind == "cgroup2" and unified is None:
            unified = Hierarchy(mount, 2, _below(own.get("", "/"), root))
        elif kind == "cgroup":
            for name in options.split(","):
                if name in own and name not in controllers:
                    controllers[name] = Hierarchy(mount, 1, _below(own[name], root))
    limits = [name for name in controllers if not name.startswith("name=")]
    if unified and not limits:
        listed = _read(unified.mount / "cgroup.controllers").split()
        return Cgroups(Layout.V2, dict.fromkeys(listed, unified), unified)
    if unified:
        return Cgroups(Layout.HYBRID, controllers, unified)
    return Cgroups(Layout.V1 if limits else Layout.NONE, controllers)


def _mounts(proc: Path) -> Iterator[tuple[Path, str, str, str]]:
    """(mount point, root, type, super options) of each mount of control groups."""
    try:
        text = (proc / "mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(kinds) >= 3 and kinds[0].startswith("cgroup"):
            yield Path(_plain(fields[4])), _plain(fields[3]), kinds[0], kinds[2]


def _plain(text: str) -> str:
    """A path of mountinfo: blank, tab, newline and backslash are written in octal."""
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text


def _below(own: str, root: str) -> str:
    """`own` seen from a mount that shows `root` of its tree; empty where it is outside of it."""
    root = root.rstrip("/")
    if own == root or not own.startswith(root + "/"):
        return ""
    return own[len(root) :].strip("/")


def make(cgroups: Cgroups, name: str, wanted: Iterable[str]) -> GroupPaths:
    """Make the group of `name` with the controllers of `wanted`: the folders that were made. Raises
    OSError.

    With v2 the controllers are switched on from the base down, which must have no processes.
    """
    paths, wanted = cgroups.paths(name), list(wanted)
    if cgroups.unified and cgroups.layout is Layout.V2:
        top = cgroups.unified.mount / cgroups.base
        (top / PARENT).mkdir(exist_ok=True)
        for folder in (top, top / PARENT):
            enabled = _read(folder / "cgroup.subtree_control").split()
            for controller in wanted:
                if controller not in enabled:
                    _need_empty(folder)
                    (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        (top / PARENT / name).mkdir()
        return paths
    controllers = {controller: paths.controllers[controller] for controller in wanted}
    unified = [paths.unified] if paths.unified else []
    every = tuple(dict.fromkeys([*controllers.values(), *unified]))
    for folder in every:
        folder.mkdir(parents=True, exist_ok=True)
    return paths._replace(controllers=controllers, every=every)


def _need_empty(folder: Path) -> None:
    """Raises OSError (EBUSY) for a group with processes, unless it is the top of the tree.

    The kernel refuses `memory` to the groups below such a one, but gives them `pids` and `cpu`, and
    makes it threaded by that: then no process can be moved into a group below it any more.
    """
    # The top has no such file; that of a namespace, in a container, has one.
    if (folder / "cgroup.type").exists() and _read(folder / "cgroup.procs").strip():
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))


def limit(
    paths: GroupPaths,
    *,
    memory: int | None = None,
    pids: int | None = None,
    cpus: float | None = None,
) -> None:
    """Set limits of a group: `memory` in bytes with swap counted, `cpus` in cores. Raises OSError
    (ENOENT where the controller is not there).
    """
    if memory is not None:
        folder = _of(paths, "memory")
        if (folder / "memory.limit_in_bytes").exists():
            (folder / "memory.limit_in_bytes").write_text(str(memory))
            if (folder / "memory.memsw.limit_in_bytes").exists():
                (folder / "memory.memsw.limit_in_bytes").write_text(str(memory))
        else:
            (folder / "memory.max").write_text(str(memory))
            if (folder / "memory.swap.max").exists():
                (folder / "memory.swap.max").write_text("0")
    if pids is not None:
        (_of(paths, "pids") / "pids.max").write_text(str(pids))
    if cpus is not None:
        folder, quota = _of(paths, "cpu"), max(int(cpus * _PERIOD), 1000)
        if (folder / "cpu.cfs_quota_us").exists():
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD}")


def _of(paths: GroupPaths, controller: str) -> Path:
    try:
        return paths.controllers[controller]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "no such controller", controller) from None


def attach(paths: GroupPaths, pid: int) -> None:
    """Move a process into every folder of the group that is there. Raises OSError.

    0 is the calling process. After some idling the kernel takes about 10 ms for it; see `enter`.
    """
    for folder in paths.every:
        with contextlib.suppress(FileNotFoundError):
            (folder / "cgroup.procs").write_text(str(pid))


def entrances(paths: GroupPaths) -> list[int]:
    """Descriptors with which a process can `enter` the folders of v1; the v2 tree is entered by
    being cloned into it (CLONE_INTO_CGROUP). Raises OSError.
    """
    found: list[int] = []
    try:
        for folder in paths.every:
            if folder != paths.unified:
                found.append(os.open(folder / "tasks", os.O_WRONLY | os.O_CLOEXEC))
    except BaseException:
        for descriptor in found:
            os.close(descriptor)
        raise
    return found


def enter(entrances: Iterable[int]) -> None:
    """Move the calling thread, the only one of its process, into the groups of `entrances`, and
    close them. Raises OSError.

    A process that is moved by another one may be forking or ending, so the kernel stops all forks
    for a moment (see `attach`). A thread that moves itself does neither: since Linux 5.6 that is
    quick (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
    """
    for descriptor in entrances:
        os.write(descriptor, b"0")
        os.close(descriptor)


def members(paths: GroupPaths) -> set[int]:
    """The processes in the group and the groups below it, by the ids of this pid namespace."""
    found: set[int] = set()
    for folder in paths.every:
        for inner, _, _ in os.walk(folder):
            # A threaded group cannot be read; its processes are those of its parent.
            found.update(int(word) for word in _read(Path(inner) / "cgroup.procs").split())
    return found - {0}


def kill(paths: GroupPaths, wait: float = 10.0) -> bool:
    """SIGKILL everything in the group; wait at most `wait` seconds for it to be empty.

    By cgroup.kill where there is a v2 tree (Linux 5.14), else process by process, with new ones
    forbidden first. Returns whether the group is empty.
    """
    if paths.unified is not None:
        with contextlib.suppress(OSError):
            (paths.unified / "cgroup.kill").write_text("1")
    until, pause = time.monotonic() + wait, 0.001
    while found := members(paths):
        if "pids" in paths.controllers:
            with contextlib.suppress(OSError):
                (paths.controllers["pids"] / "pids.max").write_text("0")
        for pid in found:
            _kill_member(paths, pid)
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return True


def _kill_member(paths: GroupPaths, pid: int) -> None:
    """SIGKILL, by a descriptor: the id may have a new owner between reading and killing."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            inside = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape")
            ours = f"/{PARENT}/{paths.name}"
            if any(line.endswith(ours) or f"{ours}/" in line for line in inside.splitlines()):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def remove(paths: GroupPaths, wait: float = 5.0) -> list[Path]:
    """Remove the group and what is below it; try for `wait` seconds while it is busy.

    Returns the folders that are left.
    """
    until, pause = time.monotonic() + wait, 0.0002
    left = list(paths.every)
    while left := [folder for folder in left if not _removed(folder)]:
        if time.monotonic() > until:
            break
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    return left


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        pass  # something is below it
    else:
        return True
    for inner, _, _ in os.walk(folder, topdown=False):
        try:
            Path(inner).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return not folder.exists()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""
