"""Image builds without a daemon: whole and recorded, or nothing is left.

Each RUN is a sandbox over the layers so far, and what it changed becomes a layer by renaming its
upper folder. Until the image is recorded, everything lies in the folder of one piece of work of
the store: that of a killed build is found by its lock, and removed (see Store.sweep_dead_work).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import (
    Blame,
    BuildFailed,
    InvalidImage,
    RuntimeUnavailable,
    SandboxError,
)
from pytest_sandbox.runtimes.build_blame import failed, took_too_long
from pytest_sandbox.runtimes.oci import build_run, images
from pytest_sandbox.runtimes.oci import dockerfile_text as text
from pytest_sandbox.runtimes.oci.build_image import Draft, NewLayer
from pytest_sandbox.runtimes.oci.build_install import Packages, ground_of, shares
from pytest_sandbox.runtimes.oci.order import LimitOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.oci.store import Work
    from pytest_sandbox.runtimes.base import BuildRequest, ImageInfo
    from pytest_sandbox.runtimes.oci.build_run import Ran
    from pytest_sandbox.runtimes.oci.dockerfile_text import Instruction
    from pytest_sandbox.runtimes.oci.order import MountOrder, Order
    from pytest_sandbox.runtimes.oci.runtime import OciRuntime

_JOBS: Final = "pytest_sandbox.runtimes.oci.build_jobs"
_PREDEFINED: Final = frozenset(
    name
    for word in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (word, word.upper())
)
"""Build arguments that need no ARG, and that no history tells of (Docker's reference, ARG)."""
_SAID: Final = 400
_OVERHEAD: Final = 1
"""Init does not count against the limit of processes."""


def build(runtime: OciRuntime, request: BuildRequest, say: Callable[[str], None]) -> ImageInfo:
    """Build and record; see the Runtime protocol. `say` gets a line for each step."""
    store = runtime.store
    work = store.work()
    try:
        image = _Build(runtime, request, say, work).run()
    finally:
        work.close()
        with contextlib.suppress(SandboxError, OSError):  # a later sweep will do
            store.empty_trash(keep=store.uses.living()[0])
    return images.shown(image, request.name)


def resolve(
    runtime: OciRuntime,
    request: BuildRequest,
    sets: Sequence[Sequence[str]],
    say: Callable[[str], None],
) -> tuple[str, list[tuple[str, ...] | None]]:
    """What sets of packages consist of on the image of `request`, which is not recorded; see
    image_builds.ResolvesPackages.
    """
    store = runtime.store
    work = store.work()
    try:
        return _Build(runtime, request, say, work).resolve(sets)
    finally:
        work.close()
        with contextlib.suppress(SandboxError, OSError):
            store.empty_trash(keep=store.uses.living()[0])


class _Build:
    """One build, step by step."""

    def __init__(
        self,
        runtime: OciRuntime,
        request: BuildRequest,
        say: Callable[[str], None],
        work: Work,
    ) -> None:
        self._runtime = runtime
        self._store = runtime.store
        self._request = request
        self._say = say
        self._work = work
        self._deadline = time.monotonic() + request.timeout
        self._numbers = itertools.count(1)
        self._lines = build_run.Lines()
        self._step = ""
        self._command = ""
        self._arguments: dict[str, str] = {}
        self._declared: list[str] = []
        self._before: list[str] = []
        self._base_digest = ""

    def run(self) -> Image:
        with self._all_steps() as total:
            request = self._request
            if request.labels:
                told = " ".join(f"{name}={value}" for name, value in request.labels.items())
                self._begin(total, total, f"LABEL {told}")
                self._draft.label(request.labels)
                self._draft.note(self._command)
            return self._draft.record(self._work, request.name)

    def resolve(self, sets: Sequence[Sequence[str]]) -> tuple[str, list[tuple[str, ...] | None]]:
        """The ground, and what each set consists of on it."""
        with self._all_steps() as total:
            self._begin(total, total, f"packages of {len(sets)} images")
            packages = self._packages()
            if packages is None:
                return "", [None for _ in sets]
            found = packages.ready(sets)
            return packages.ground, [found.resolved(one) for one in sets]

    @contextlib.contextmanager
    def _all_steps(self) -> Iterator[int]:
        """Run every instruction; the number of steps, with one to come."""
        request = self._request
        first, *rest = text.parse(request.dockerfile)
        total = 1 + len(rest) + bool(request.labels)
        try:
            self._begin(1, total, str(first))
            base = self._base(text.base_of(first))
            self._base_digest = base.config_digest
            self._order = self._runtime.machine.order(base, "build")
            layered = self._store.snapshotter.layered
            self._draft = Draft(self._store, base, layered=layered)
            for number, instruction in enumerate(rest, 2):
                what = f"RUN (installs {' '.join(instruction.packages)})"
                self._begin(
                    number, total, str(instruction), said=what if instruction.packages else ""
                )
                _DO[instruction.word](self, instruction)
                if instruction.word != "LABEL":  # which tells of the whole image
                    self._before.append(str(instruction))
            yield total
        except (BuildFailed, RuntimeUnavailable):
            raise
        except (SandboxError, OSError) as wrong:
            raise self._broken(wrong) from wrong

    def _broken(self, wrong: SandboxError | OSError) -> BuildFailed:
        """What the store or a start said: a working folder that is a file, a full disk."""
        if isinstance(wrong, SandboxError):
            what, blame, step, details = wrong.what, wrong.blame, wrong.next_step, wrong.details
        else:
            what, blame, details = str(wrong), Blame.HOST, ""
            step = "look at the disk that holds the images"
        place = f"step {self._step} {self._command[:120]}"
        return BuildFailed(
            f"the build of {self._request.name} failed in {place}: {what}",
            command=self._command,
            blame=blame,
            next_step=step,
            details=details,
        )

    def _begin(self, number: int, total: int, command: str, said: str = "") -> None:
        if time.monotonic() > self._deadline:
            raise self._late()
        self._step, self._command = f"{number}/{total}", command
        self._lines = build_run.Lines()
        self._say(f"step {self._step}: {(said or command)[:_SAID]}")

    def _mention(self, what: str) -> None:
        self._say(f"step {self._step}: {what}")

    def _late(self) -> BuildFailed:
        return took_too_long(
            self._request, step=self._step, command=self._command, lines=tuple(self._lines.last)
        )

    def _base(self, name: str) -> Image:
        found = None
        for _ in range(2):  # what is found after it was protected stays
            found = self._runtime.image(name, self._request.target.arch)
            if found is None:
                break
            self._work.protect(layers=found.keys)
        if found is None:
            arch = self._request.target.arch
            msg = (
                f"the build of {self._request.name} failed in step {self._step}: the image {name} "
                f"for {arch} is not in the store"
            )
            raise BuildFailed(
                msg,
                command=self._command,
                blame=Blame.HOST,
                next_step=f"pytest-sandbox image pull {name}",
            )
        self._store.touch(found)
        return found

    # --- instructions -----------------------------------------------------------------------

    def _run(self, instruction: Instruction) -> None:
        command = text.shell_text(instruction)
        shell = list(self._draft.config.get("Shell") or ("/bin/sh", "-c"))
        declared, words = self._args, (*shell, command)
        packages = self._packages() if instruction.packages else None
        if packages is None:
            folder, ran = self._sandbox(words, self._env_of_run())
        else:
            folder, ran = packages.install(words, instruction.packages, self._mention)
        self._check(ran)
        told = [f"|{len(declared)}", *(f"{n}={v}" for n, v in declared.items())] if declared else []
        self._seal(folder, " ".join(["RUN", *told, *shell, command]), created=ran.created)

    @property
    def _args(self) -> dict[str, str]:
        return {name: self._arguments[name] for name in self._declared}

    def _env_of_run(self) -> dict[str, str]:
        """What a command gets besides the image's own environment."""
        given, own = self._request.build_args, self._draft.env
        proxies = {name: given[name] for name in given if name in _PREDEFINED}
        return {name: v for name, v in {**proxies, **self._args}.items() if name not in own}

    def _check(self, ran: Ran) -> None:
        """Raise BuildFailed unless the command did its work."""
        if ran.timed_out:
            raise self._late()
        if ran.status:
            raise failed(
                self._request,
                step=self._step,
                command=self._command,
                lines=tuple(self._lines.last),
                error=f"the command returned a non-zero code: {ran.status}",
                code=ran.status,
                out_of_memory=ran.out_of_memory,
            )

    def _sandbox(
        self, argv: tuple[str, ...], env: Mapping[str, str], mounts: tuple[MountOrder, ...] = ()
    ) -> tuple[Path, Ran]:
        """Run one command over the layers so far; its folder, with what it changed."""
        folder = self._work.folder / f"run-{next(self._numbers)}"
        self._lines = build_run.Lines()
        order = self._ordered(folder, argv, env, mounts)
        return folder, build_run.run(self._runtime, order, self._lines, self._deadline)

    def _packages(self) -> Packages | None:
        """The packages at this point of the build, where they can be shared."""
        if not shares(self._request, self._order.snapshotter):
            return None
        ground = ground_of(
            self._request, base=self._base_digest, before=self._before, args=self._args
        )
        return Packages(
            self._store,
            self._work,
            self._request,
            ground,
            self._env_of_run(),
            self._sandbox,
            self._check,
            heard=lambda: "\n".join(self._lines.last),
        )

    def _ordered(
        self,
        folder: Path,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        mounts: tuple[MountOrder, ...],
    ) -> Order:
        limits, machine = self._request.limits, self._runtime.machine
        name = f"ps-build-{os.getpid()}-{secrets.token_hex(5)}"
        return self._order._replace(
            id=name,
            layers=self._draft.folders,
            folder=str(folder),
            config=self._draft.document,
            entrypoint=argv,
            env=tuple(f"{name}={value}" for name, value in env.items()),
            hostname="sandbox",
            network=self._request.network,
            mounts=mounts,
            limits=LimitOrder(
                memory=limits.memory,
                cpus=min(limits.cpus, machine.cpus),
                pids=limits.pids + _OVERHEAD,
                nofile=limits.nofile,
                weak=machine.weak,
            ),
            notes=(str(self._store.root / "owners" / name),),
            keep=True,
        )

    def _copy(self, instruction: Instruction) -> None:
        wanted = text.copy_of(instruction)
        files = self._request.files
        chosen: list[tuple[str, bytes]] = []
        single = len(wanted.sources) == 1 and not wanted.target.endswith("/")
        for source in wanted.sources:
            name = posixpath.normpath(source.lstrip("/"))
            if name in files and not source.endswith("/"):
                chosen.append((posixpath.basename(name), files[name]))
                continue
            inside = "" if name == "." else f"{name}/"
            below = sorted(path for path in files if path.startswith(inside))
            if not below:
                what = f"COPY of {source}, which is not in the build context"
                raise text.refused(instruction.line, what)
            chosen += [(path.removeprefix(inside), files[path]) for path in below]
            single = False
        if len(wanted.sources) > 1 and not wanted.target.endswith("/"):
            what = f"COPY of several sources to {wanted.target}, which is no folder"
            raise text.refused(instruction.line, what)
        contents = os.memfd_create("pytest-sandbox-context")
        try:
            with os.fdopen(contents, "wb", closefd=False) as out:
                out.writelines(data for _, data in chosen)
            args = {
                "files": [[name, len(data)] for name, data in chosen],
                "target": self._inside(wanted.target),
                "single": single,
            }
            self._make("copy", args, [contents])
        finally:
            os.close(contents)

    def _workdir(self, instruction: Instruction) -> None:
        path = self._inside(text.single_of(instruction))
        self._make("make_folder", {"path": path})
        self._draft.config["WorkingDir"] = path

    def _inside(self, path: str) -> str:
        """A path of the image, from its root on; a relative one counts from its working folder."""
        here = self._draft.config.get("WorkingDir") or "/"
        return posixpath.normpath(posixpath.join("/", here, path))

    def _label(self, instruction: Instruction) -> None:
        self._draft.label(text.pairs_of(instruction))
        self._draft.note(self._command)

    def _env(self, instruction: Instruction) -> None:
        self._draft.set_env(text.pairs_of(instruction))
        self._draft.note(self._command)

    def _argument(self, instruction: Instruction) -> None:
        name, default = text.argument_of(instruction)
        value = self._request.build_args.get(name, default)
        if value is not None:
            self._arguments[name] = value
            if name not in self._declared and name not in _PREDEFINED:
                self._declared.append(name)
        self._draft.note(self._command)

    def _user(self, instruction: Instruction) -> None:
        self._draft.config["User"] = text.single_of(instruction)
        self._draft.note(self._command)

    # --- layers -----------------------------------------------------------------------------

    def _make(self, job: str, args: Mapping[str, Any], fds: list[int] | None = None) -> None:
        """A layer that a job makes."""
        folder = self._work.folder / f"step-{next(self._numbers)}"
        where = {
            "layers": self._draft.folders,
            "folder": str(folder),
            "snapshotter": self._order.snapshotter,
            "root": self._store.caller.ids.root,
        }
        try:
            self._store.caller.call(f"{_JOBS}:{job}", {**args, **where}, fds or [], where="host")
        except (InvalidImage, NotADirectoryError) as wrong:
            what = wrong.what if isinstance(wrong, InvalidImage) else str(wrong)
            step = "choose another place in the image"
            raise SandboxError(what, blame=Blame.RECIPE, next_step=step) from wrong
        self._seal(folder, self._command)

    def _seal(self, folder: Path, created_by: str, *, created: tuple[str, ...] = ()) -> None:
        """What a step left in its upper folder becomes the next layer, if it left something."""
        target = folder.with_name(f"{folder.name}.layer")
        args = {
            "layers": self._draft.folders,
            "folder": str(folder),
            "snapshotter": self._order.snapshotter,
            "target": str(target),
            "created": created,
            "difference": self._store.snapshotter.layered,
        }
        told = self._store.caller.call(f"{_JOBS}:seal", args, where="host")
        layer = None if told["empty"] else NewLayer(target, told["diff_id"], told["size"])
        self._draft.note(created_by, layer)


_DO: Final[dict[str, Callable[[_Build, Instruction], None]]] = {
    "RUN": _Build._run,
    "COPY": _Build._copy,
    "LABEL": _Build._label,
    "ENV": _Build._env,
    "ARG": _Build._argument,
    "USER": _Build._user,
    "WORKDIR": _Build._workdir,
}
