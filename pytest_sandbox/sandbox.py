"""What a test holds: Sandbox, with Result, Limits, Mount and Snapshot around it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pytest_sandbox import files
from pytest_sandbox.errors import (
    Blame,
    CommandFailed,
    ImageUnavailable,
    Phase,
    SandboxError,
    SandboxGone,
    SandboxTimeout,
    StepFailed,
    UsageError,
)
from pytest_sandbox.install import Installer, RequirementMissing
from pytest_sandbox.keywords import Options, read_options
from pytest_sandbox.limits import PROFILES, Limits
from pytest_sandbox.runtimes.base import Changes, Mount, Result, Stats
from pytest_sandbox.targets import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from typing import Self

    from pytest_sandbox.images.requirements import SystemRequirements
    from pytest_sandbox.plans.model import Plan
    from pytest_sandbox.pool import Ahead
    from pytest_sandbox.recipes.model import Recipe
    from pytest_sandbox.runtimes.base import ImageInfo, LimitName, Network, System
    from pytest_sandbox.session import RunSession

_Made = TypeVar("_Made")

__all__ = ["Changes", "Limits", "Mount", "Result", "Sandbox", "Snapshot", "Stats"]

_JOURNAL = 50
_TAIL = 4096


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stopped copy-on-write point of a sandbox. `sandbox_factory(snapshot=...)` starts others
    from it.
    """

    name: str
    target: Target
    limits: Limits
    spec_env: Mapping[str, str]
    digest: str = ""
    """The content id of the image behind it, where that is known."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a report says of a command: no more than the end of its output, since many are kept."""

    argv: tuple[str, ...]
    returncode: int
    limit: LimitName | None
    tail: str

    @property
    def ok(self) -> bool:
        """Exit status 0, and no limit was hit."""
        return self.returncode == 0 and self.limit is None


class Sandbox:
    """One throwaway system with limits: a clean Linux that ends with the test.

    `target` is what it runs, `image` the name of the image that it came from, `limits` what it may
    use.
    """

    def __init__(
        self, session: RunSession, system: System, options: Options, plans: Sequence[Plan] = ()
    ) -> None:
        self._session = session
        self._system = system
        self._options = options
        self._plans = list(plans)
        self._forks: list[Sandbox] = []
        self._env: dict[str, str] = {}
        self._touched = False
        self._closed = False
        self.journal: list[Entry] = []
        self.notices: list[str] = []

    def __repr__(self) -> str:
        return f"<Sandbox {self.id[:12]} {self.target} {self.image}>"

    @property
    def id(self) -> str:
        """The engine's name for it."""
        return self._system.id

    @property
    def target(self) -> Target:
        """The system that it is."""
        return self._system.spec.target

    @property
    def image(self) -> str:
        """The name of the image that it started from."""
        return self._system.spec.image

    @property
    def limits(self) -> Limits:
        """What it may use."""
        return self._system.spec.limits

    @property
    def system(self) -> System:
        """The runtime's own side of it."""
        return self._system

    # -- commands ------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        input: str | bytes | None = None,
    ) -> Result:
        """Run one command to its end.

        `timeout` is in seconds: after it the command's whole tree is killed and SandboxTimeout
        raised, with what there was in `.result`; the sandbox stays usable. `env` is added to the
        sandbox's own. Without `input` stdin is at end of file. `check` raises CommandFailed for a
        status other than 0. A missing command is status 127.

        Raises TypeError for a `str` argv, UnknownUser, MissingDirectory, SandboxTimeout,
        SandboxGone.
        """
        __tracebackhide__ = True
        if isinstance(argv, str | bytes):
            msg = f"argv is a list, not a string: write sandbox.run({_as_list(argv)!r})"
            raise TypeError(msg)
        words: list[Any] = [os.fspath(w) if isinstance(w, os.PathLike) else w for w in argv]
        if not words:
            msg = "argv is empty: name a command, like sandbox.run(['true'])"
            raise ValueError(msg)
        for word in words:
            if not isinstance(word, str):
                msg = f"argv holds {word!r}: every word must be a str"
                raise TypeError(msg)
        self._use()
        data = input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input
        if self._env:
            env = {**self._env, **(env or {})}
        try:
            result = self._system.run(
                words, timeout=timeout, env=env, cwd=cwd, user=user, input=data
            )
        except SandboxError as error:
            if isinstance(error, SandboxTimeout):
                self._note(error.result)
            # The reader's own line is what matters, not where in a runtime it was raised.
            raise error.with_traceback(None) from None
        self._note(result)
        if check and not result.ok:
            said = (result.stderr.strip() or result.stdout.strip()).splitlines()
            why = f"hit the {result.limit} limit" if result.limit else f"status {result.returncode}"
            msg = f"{why}: `{shlex.join(words)}`" + (f": {said[-1]}" if said else "")
            raise CommandFailed(msg, result, next_step="see result.stdout and result.stderr")
        return result

    def _note(self, result: Result) -> None:
        tail = (result.stdout_bytes[-_TAIL:] + result.stderr_bytes[-_TAIL:]).decode(
            "utf-8", "replace"
        )
        self.journal.append(Entry(result.argv, result.returncode, result.limit, tail))
        del self.journal[:-_JOURNAL]

    # -- recipes -------------------------------------------------------------------------------

    def install(self, recipe: str | Recipe, *, version: str | None = None) -> None:
        """Run a recipe's plan here; the recipe's packages must be in the image.

        An untouched sandbox changes to an image that has them. Once a command has run, what is
        missing is an error that names the mark to use. Raises UsageError for an unknown recipe,
        PlanError, StepFailed, SandboxTimeout.
        """
        from pytest_sandbox.images.requirements import requirements_of
        from pytest_sandbox.plans.script import compile_plan

        self._check_open()
        session = self._session
        found = session.recipe(recipe) if isinstance(recipe, str) else recipe
        plan = plan_for(session, found, self.target, version)
        programs = compile_plan(plan)
        if not self._touched and not self._options.image:
            self._adopt([*self._plans, plan], requirements_of(plan, self.target))
        installer = Installer(
            self._system, session.downloader, log=session.logs(self._system.id[:12])
        )
        self._env.update(installed_environment(plan, self._options.env))
        try:
            with session.clock.phase("install"):
                installer.install(programs)
        except StepFailed as failed:
            if isinstance(failed, RequirementMissing):
                failed.next_step = (
                    f"put @pytest.mark.requires_system({found.name!r}) on the test, "
                    "or install before anything else runs"
                )
            raise
        finally:
            self._touched = True
            for _, result in installer.results:
                self._note(result)
            self.notices += installer.notices

    def _adopt(self, plans: list[Plan], wanted: SystemRequirements) -> None:
        asked = self._options.network or self._session.settings.network
        if wanted.network and asked is None:
            network: Network | None = "bridge"
        else:
            network = None
        old = self._system
        image = _image(self._session, plans, self.target).name
        if image == old.spec.image and network is None:
            return
        self._plans = plans
        self._system = self._session.start(
            image,
            old.spec.target,
            old.spec.limits,
            network=network or old.spec.network,
            no_new_privileges=old.spec.no_new_privileges,
            env=self._options.env,
            user=old.spec.user,
            cwd=old.spec.cwd,
            mounts=old.spec.mounts,
            tmpfs=old.spec.tmpfs,
            purpose=old.spec.purpose,
        )
        self._session.release(old)

    # -- files ---------------------------------------------------------------------------------

    def copy_in(self, source: str | os.PathLike[str], target: str) -> None:
        """`cp -a` from the host: a folder to a new path becomes that path; mode and symlinks are
        kept.

        The copies belong to root. Raises FileNotFoundError for a missing source or a missing
        folder above the target, and what cp refuses (a file over a folder, or the reverse).
        """
        self._use()
        files.copy_in(self._system, Path(source), target)

    def copy_out(self, source: str, target: str | os.PathLike[str]) -> None:
        """`cp -a` to the host: a folder to a new path becomes that path; mode and symlinks are
        kept.

        Raises FileNotFoundError for a missing source.
        """
        self._use()
        path = PurePosixPath(self._system.spec.cwd or "/") / source
        files.copy_out(self._system, str(path), Path(target))

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """The text of a file in the sandbox; raises FileNotFoundError, IsADirectoryError."""
        return self.read_bytes(path).decode(encoding)

    def read_bytes(self, path: str) -> bytes:
        """The bytes of a file in the sandbox; raises FileNotFoundError, IsADirectoryError."""
        self._check_open()
        return files.read(self._system, path)

    def write_text(
        self, path: str, text: str, *, mode: int = 0o644, encoding: str = "utf-8"
    ) -> None:
        """Write a file of root's in the sandbox; a symlink is written through.

        Raises FileNotFoundError for a missing folder, IsADirectoryError.
        """
        self._use()
        files.write(self._system, path, text.encode(encoding), mode)

    def _check_open(self) -> None:
        if self._closed:
            msg = "the sandbox is closed"
            raise SandboxGone(msg, blame=Blame.HOST, next_step="use it before it is closed")

    def _use(self) -> None:
        """From here on the sandbox is no clean one any more."""
        self._check_open()
        self._touched = True

    # -- points in time ------------------------------------------------------------------------

    def changes(self) -> Changes:
        """Added, changed and removed paths against the image; empty in a fresh sandbox."""
        self._check_open()
        return self._system.changes()

    def snapshot(self) -> Snapshot:
        """A copy-on-write point of the file system; processes and tmpfs are not in it."""
        self._check_open()
        name = self._system.snapshot()
        return Snapshot(name, self.target, self.limits, {**self._options.env, **self._env})

    def fork(self) -> Sandbox:
        """A second sandbox that starts from this one's files as they are now, with the same
        limits.
        """
        return self._session_start(self.snapshot().name)

    def _session_start(self, image: str) -> Sandbox:
        spec = self._system.spec
        system = self._session.start(
            image,
            spec.target,
            spec.limits,
            network=spec.network,
            no_new_privileges=spec.no_new_privileges,
            env=self._options.env,
            user=spec.user,
            cwd=spec.cwd,
            mounts=spec.mounts,
            tmpfs=spec.tmpfs,
            purpose=spec.purpose,
        )
        child = Sandbox(self._session, system, self._options, self._plans)
        child._touched = True
        child._env = dict(self._env)
        self._forks.append(child)
        return child

    def logs(self) -> str:
        """What background processes wrote."""
        return self._system.logs()

    def stats(self) -> Stats:
        """Peak memory (bytes), CPU time (seconds) and bytes written so far."""
        self._check_open()
        return self._system.stats()

    def shell(self) -> str:
        """Keep a copy of the system as it is now, and return the command line that enters it."""
        self._check_open()
        from pytest_sandbox.runtimes.kept import keep

        return f"pytest-sandbox shell {keep(self._system)}"

    def close(self) -> None:
        """End it, and every fork of it, at once; may be called again."""
        if not self._closed:
            self._closed = True
            for child in self._forks:
                child.close()
            self._session.release(self._system)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _as_list(argv: str | bytes) -> list[str]:
    text = argv.decode("utf-8", "replace") if isinstance(argv, bytes) else argv
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def installed_environment(plan: Plan, given: Mapping[str, str]) -> dict[str, str]:
    """What commands need to find an installed plan: PATH and the variables of its set_env steps.

    What the user gave wins, and HOME stays the system's own.
    """
    from pytest_sandbox.plans.script import verify_environment

    found = verify_environment(plan)
    return {name: text for name, text in found.items() if name != "HOME" and name not in given}


def plan_for(session: RunSession, recipe: Recipe, target: Target, version: str | None) -> Plan:
    """The recipe's plan; `version` wins over the run's own settings."""
    if version is None:
        return session.plan(recipe, target)
    from pytest_sandbox.plans.resolve import resolve

    versions = {**session.settings.versions(), recipe.name: version}
    return resolve(recipe, target, catalogue=session.catalogue, versions=versions)


def _image(session: RunSession, plans: Sequence[Plan], target: Target) -> ImageInfo:
    from pytest_sandbox.images.requirements import merged, requirements_of

    wanted = merged([requirements_of(plan, target) for plan in plans])
    return session.image(wanted, target).info


def open_sandbox(
    session: RunSession,
    keywords: Mapping[str, Any],
    *,
    requires: Sequence[str] = (),
    snapshot: Snapshot | None = None,
    where: str = "sandbox()",
    purpose: str = "",
    ahead: Ahead | None = None,
) -> Sandbox:
    """Start a sandbox as the keywords of a mark or factory ask; its image gets what the recipes
    `requires` need. With `ahead` (what is to come) it may be one that was started before.

    Raises UsageError for a wrong keyword or an unknown recipe, RuntimeUnavailable,
    ImageUnavailable, BuildFailed.
    """
    options = read_options(keywords, where)
    target = target_of(session, options, snapshot)
    names = tuple(requires)
    plans = once(
        session,
        ("plans", names, target),
        lambda: [session.plan(session.recipe(name), target) for name in names],
    )
    digest = ""  # somebody may give another image the name of this one
    if snapshot is not None:
        image, digest = snapshot.name, snapshot.digest
    elif options.image:
        if plans:
            msg = f"{where}: image={options.image!r} cannot get what {', '.join(requires)} require"
            raise UsageError(msg, next_step="leave image= or requires_system out")
        _own_image(session, target, options.image, where)
        image = options.image
    else:
        ready = once(session, ("image", names, target), lambda: _image(session, plans, target))
        image, digest = ready.name, ready.digest
    limits = session.settings.limits(PROFILES[options.profile]).override(**options.limits)
    if snapshot is not None:
        limits = snapshot.limits.override(**options.limits)
    network = options.network or cast("Network", session.settings.network or "none")
    system = session.start(
        image,
        target,
        limits,
        network=network,
        no_new_privileges=options.no_new_privileges,
        env=options.env,
        user=options.user,
        cwd=options.cwd,
        mounts=options.mounts,
        tmpfs=options.tmpfs,
        purpose=purpose,
        ahead=ahead,
        digest=digest,
    )
    sandbox = Sandbox(session, system, options, plans)
    sandbox.notices += session.shortfalls(limits)
    if snapshot is not None:
        sandbox._touched = True
        sandbox._env = {k: v for k, v in snapshot.spec_env.items() if k not in options.env}
    return sandbox


def once(session: RunSession, key: Hashable, make: Callable[[], _Made]) -> _Made:
    """What `make` gives, made once a run; what fails is tried again."""
    if key not in session.made:
        session.made[key] = make()
    made: _Made = session.made[key]
    return made


def _own_image(session: RunSession, target: Target, reference: str, where: str) -> None:
    """An image that the test itself names is no default that could be skipped."""
    try:
        session.base(target, reference)
    except ImageUnavailable as missing:
        msg = f"{where}: image={reference!r}: {missing.what}"
        raise SandboxError(
            msg, phase=Phase.IMAGE, blame=missing.blame, next_step=missing.next_step
        ) from missing


def target_of(session: RunSession, options: Options, snapshot: Snapshot | None = None) -> Target:
    """The target that keywords name: theirs, the snapshot's, else debian on the engine's arch."""
    if snapshot is not None:
        asked = options.target or snapshot.target
        family, arch = options.family or asked.family, options.arch or asked.arch
        if (family, arch) != (snapshot.target.family, snapshot.target.arch):
            msg = f"the snapshot is of {snapshot.target}, and {family}/{arch} was asked for"
            raise UsageError(msg, next_step="leave family, arch and target out")
        return snapshot.target
    if options.target is not None:
        return options.target
    family = options.family or "debian"
    if options.arch:
        return Target("linux", options.arch, family)
    return session.default_target(family)
