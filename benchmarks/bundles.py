"""Peers without a daemon, over the same tree: runc with a user namespace and an overlay,
bubblewrap, and bare namespaces, which isolate little and are the limit of what can be had.

Each turn makes an upper folder, mounts, runs `true` and unmounts, as ours do; what it leaves is
renamed aside and removed after the clock has stopped. As an ordinary user, who cannot mount, the
tree itself is the root file system.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from benchmarks.field import ENGINE, Field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

RUNC, BWRAP, BARE = (
    "runc run, user namespace, overlay",
    "bubblewrap, overlay",
    "unshare: bare namespaces, overlay (the limit)",
)
ROOTLESS, ROOTLESS_BWRAP = "rootless runc run", "rootless bubblewrap"
_INIT = "/dev/.bench-init"
_HELD = ("sleep", "100000")


def own_mounts() -> None:
    """From here on this process's mounts are its own, and end with it."""
    from pytest_sandbox.oci import linux

    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)


class Trees:
    """The unpacked base as a bundle of the OCI runtime spec, and what is run over it.

    The spec is the one that ours is started with: user namespace, capabilities, seccomp filter,
    masks, limits, an init that reaps.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.rootless = os.geteuid() != 0
        self.runc = shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        self.numbers = count()
        self.free: SimpleQueue[Path] = SimpleQueue()
        self.first = self.bundle(["true"])
        self.lower = self.first.rootfs
        self.free.put(self.first.path)

    # --- making -----------------------------------------------------------------------------

    def bundle(self, argv: Sequence[str]) -> Any:
        """A whole bundle that runs `argv`: its tree is a copy of the base."""
        from pytest_sandbox.oci.sources import ImageSource

        runtime = self.field.runtime(ENGINE)
        name = f"bundle{next(self.numbers)}"
        source = ImageSource(self.field.image, runtime.store, self._options(argv, name))
        made = source.prepare(self.field.temp / name)
        self.field.stack.callback(made.remove, runtime.supervisor)
        return made

    def more(self, slots: int) -> None:
        """So many more bundles over the same tree, for turns at the same time."""
        for _ in range(slots):
            path = self.field.temp / f"bundle{next(self.numbers)}"
            shutil.copytree(self.first.path / "etc", path / "etc")
            path.chmod(0o711)
            self._respec(path, ["true"])
            self.free.put(path)

    def _respec(self, path: Path, argv: Sequence[str]) -> None:
        spec = self.first.spec
        words = spec["process"]["args"]
        words[words.index("true") :] = argv
        spec["root"]["path"] = "merged"
        spec["linux"]["cgroupsPath"] = self._cgroup(path.name)
        (path / "config.json").write_text(json.dumps(spec), encoding="utf-8")

    def _options(self, argv: Sequence[str], name: str) -> Any:
        from pytest_sandbox.oci.bundle import BundleOptions
        from pytest_sandbox.oci.spec.generate import Overrides
        from pytest_sandbox.oci.spec.mounts import Bind
        from pytest_sandbox.oci.spec.resources import ResourceLimits

        init = self.field.runtime(ENGINE).machine.init.path
        limits = self.field.limits
        held = {} if self.rootless else {"memory": limits.memory, "pids": limits.pids}
        cpus = None if self.rootless else min(limits.cpus, len(os.sched_getaffinity(0)))
        return BundleOptions(
            overrides=Overrides(argv=argv, hostname="sandbox"),
            limits=ResourceLimits(nofile=limits.nofile, cpus=cpus, **held),
            init=(_INIT, "-p", "SIGKILL", "--"),
            init_files=[Bind.of(init, _INIT)],
            cgroups_path="" if self.rootless else self._cgroup(name),
        )

    def _cgroup(self, name: str) -> str:
        # Beside ours, in the same group of all sandboxes.
        access = self.field.runtime(ENGINE).machine.access
        path: str = access.cgroups.paths(f"bench-{os.getpid()}-{name}").engine_path
        return path

    # --- a throwaway root -------------------------------------------------------------------

    @contextmanager
    def overlay(self, bundle: Path) -> Iterator[Path]:
        """`merged` of a bundle: the tree below a fresh upper folder, by mount(2)."""
        from pytest_sandbox.oci import linux

        upper, work, merged = bundle / "upper", bundle / "work", bundle / "merged"
        info = self.lower.stat()
        for folder in (upper, work):
            folder.mkdir()
            os.chown(folder, info.st_uid, info.st_gid)
        merged.mkdir(exist_ok=True)
        options = f"lowerdir={self.lower},upperdir={upper},workdir={work},volatile"
        linux.mount("overlay", merged, "overlay", linux.MS_NODEV, options)
        try:
            yield merged
        finally:
            linux.umount(merged, linux.MNT_DETACH)
            aside = self.field.temp / f"aside{next(self.numbers)}"
            aside.mkdir()
            upper.rename(aside / "upper")
            work.rename(aside / "work")

    def sweep(self) -> None:
        """Remove what turns have renamed aside."""
        for aside in self.field.temp.glob("aside*"):
            shutil.rmtree(aside, ignore_errors=True)

    def _timed(self, call: Callable[[Path, Path], None]) -> Callable[[], float]:
        def turn() -> float:
            bundle = self.free.get()
            began = time.perf_counter()
            with self.overlay(bundle) as merged:
                call(bundle, merged)
            took = time.perf_counter() - began
            self.free.put(bundle)
            self.sweep()
            return took

        return turn

    # --- candidates -------------------------------------------------------------------------

    def root(self, skipped: dict[str, str]) -> dict[str, Callable[[], float | None]]:
        """Name -> one turn, as root. `own_mounts` comes before."""
        self._respec(self.first.path, ["true"])
        found: dict[str, Callable[[], float | None]] = {}
        if self._has(RUNC, "runc", skipped):
            found[RUNC] = self._timed(lambda bundle, _: self.runc_run(bundle))
        if self._has(BWRAP, "bwrap", skipped):
            found[BWRAP] = self._timed(lambda _, merged: self._bwrap(merged))
        if self._has(BARE, "unshare", skipped):
            found[BARE] = self._timed(lambda _, merged: self._bare(merged))
        return found

    def ordinary(self, skipped: dict[str, str]) -> dict[str, Callable[[], float | None]]:
        """Name -> one turn, as an ordinary user."""
        found: dict[str, Callable[[], float | None]] = {}
        if self._has(ROOTLESS, "runc", skipped):
            found[ROOTLESS] = lambda: self.runc_run(self.first.path)
        if self._has(ROOTLESS_BWRAP, "bwrap", skipped):
            found[ROOTLESS_BWRAP] = lambda: self._bwrap(self.lower)
        return found

    def runc_run(self, bundle: Path) -> None:
        """`runc run` of a bundle to its end."""
        run([*self.runc_words("run"), "--bundle", bundle, f"bench-{next(self.numbers)}"])

    def runc_words(self, verb: str) -> list[str | Path]:
        """runc with a folder of states of its own."""
        words: list[str | Path] = [self.runc or "runc", "--root", self.field.temp / "states", verb]
        return [*words, "--no-new-keyring"] if verb in {"run", "create"} else words

    @contextmanager
    def held(self, argv: Sequence[str] = _HELD) -> Iterator[str]:
        """A container of runc's that waits: its name, for `runc exec`."""
        bundle = self.field.temp / f"held{next(self.numbers)}"
        shutil.copytree(self.first.path / "etc", bundle / "etc")
        bundle.chmod(0o711)
        self._respec(bundle, argv)
        name = bundle.name
        with self.overlay(bundle):
            null = subprocess.DEVNULL
            words = [*self.runc_words("run"), "--detach", "--bundle", bundle, name]
            subprocess.run(words, stdin=null, stdout=null, stderr=null, check=True)
            try:
                yield name
            finally:
                run([*self.runc_words("delete"), "--force", name])
        self.sweep()

    def _bwrap(self, tree: Path) -> None:
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--hostname", "sandbox"]
        words += ["--cap-drop", "ALL", "--bind", str(tree), "/"]
        run([*words, "--proc", "/proc", "--dev", "/dev", "true"])

    @staticmethod
    def _bare(tree: Path) -> None:
        run(["unshare", "--mount", "--pid", "--fork", f"--root={tree}", "true"])

    @staticmethod
    def _has(name: str, program: str, skipped: dict[str, str]) -> bool:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            skipped[name] = f"no {program} on PATH"
        return name not in skipped


def run(argv: Sequence[str | Path]) -> None:
    """A program that has to end well and say nothing."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode or done.stdout:
        words = " ".join(map(str, argv))
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        msg = f"`{words}` ended with status {done.returncode}: {said[-500:]}"
        raise RuntimeError(msg)
