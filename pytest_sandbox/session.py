"""One run's shared state: settings, recipes, engine, images and every sandbox that is open.

Everything is made on first use, so that configure and collect touch neither an engine nor the
network.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.clock import OFF
from pytest_sandbox.errors import ImageUnavailable, RuntimeUnavailable, SandboxError
from pytest_sandbox.targets import Target, host_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.clock import Clock
    from pytest_sandbox.images.families import Family
    from pytest_sandbox.images.requirements import SystemRequirements
    from pytest_sandbox.images.spec import ImageSpec
    from pytest_sandbox.limits import Limits
    from pytest_sandbox.plans.catalogue import Catalogue
    from pytest_sandbox.plans.downloads import Downloader
    from pytest_sandbox.plans.model import Plan
    from pytest_sandbox.pool import Ahead
    from pytest_sandbox.recipes.model import Recipe
    from pytest_sandbox.runtimes.base import (
        ImageInfo,
        Mount,
        Network,
        Owner,
        Runtime,
        RuntimeInfo,
        System,
    )
    from pytest_sandbox.runtimes.image_builds import ImageBuilds
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.systems import Systems

BASE_ENV: Mapping[str, str] = {"HOME": "/root", "LANG": "C.UTF-8"}
"""The allowlist's fixed part: what every command in a sandbox gets beside the image's own PATH."""


_REAP: Final = 60.0
"""Seconds that the end of a run waits for the removal of what dead ones left."""


def _quiet(line: str) -> None:
    del line


def weaker(info: RuntimeInfo) -> str:
    """What to tell people of limits that no control group holds."""
    names = ", ".join(info.weak_limits)
    return f"weaker limits for {names}, which can be evaded: {info.weak_why}"


def _nothing(name: str) -> None:
    del name


@dataclass(frozen=True, slots=True)
class ReadyImage:
    """An image that sandboxes can start from. `hit` says that it was there before; `seconds` is
    the wait for it.
    """

    info: ImageInfo
    spec: ImageSpec
    hit: bool
    seconds: float


@dataclass(slots=True, eq=False)
class RunSession:
    """The state of one run in one process. `run` is the same id in every worker of the run."""

    settings: Settings
    rootpath: Path
    run: str
    folders: tuple[Path, ...] = ()
    """Where recipes are looked up by name."""
    worker: str = ""
    say: Callable[[str], None] = _quiet
    find: Callable[[str], Runtime | None] = _nothing
    """Another plugin's runtime by the setting's name, or None for the built-in detection."""
    main: bool = True
    """Whether this process is the run's controller (or the only one): it sweeps at the end."""
    has_header: bool = False
    """Whether the head of the run tells of the engine."""
    log_root: Callable[[], Path] | None = None
    workers: int = 1
    """How many processes share the tests of this run."""
    made: dict[Any, Any] = field(default_factory=dict)
    """What others make once for a run and ask for by a key."""
    upcoming: Callable[[], Iterable[tuple[SystemRequirements, Target]]] = tuple
    """What the tests to come need, as far as it is known beforehand."""
    clock: Clock = OFF
    """What measures where the time goes (`--sandbox-durations`)."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    why: str = ""
    """Why `auto` took this engine; empty for one that was named or given."""
    _runtime: Runtime | None = None
    _info: RuntimeInfo | None = None
    _unavailable: SandboxError | None = None
    _bases: dict[Target, SandboxError | None] = field(default_factory=dict)
    _images: dict[str, ReadyImage] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _builds: ImageBuilds | None = None
    _systems: Systems | None = None
    _aside: threading.Thread | None = None
    _cache: dict[str, Any] = field(default_factory=dict)

    # -- recipes -------------------------------------------------------------------------------

    @property
    def catalogue(self) -> Catalogue:
        """Recipes by name, from the folders of this run."""
        if "catalogue" not in self._cache:
            from pytest_sandbox.plans.catalogue import Catalogue

            self._cache["catalogue"] = Catalogue(self.folders)
        found: Catalogue = self._cache["catalogue"]
        return found

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name; raises UsageError that names it and where it was looked for."""
        found = self.catalogue.find(name)
        if found is None:
            from pytest_sandbox.errors import UsageError

            where = ", ".join(str(folder) for folder in self.folders) or "no folder"
            msg = f"unknown recipe {name!r} (looked in {where})"
            raise UsageError(msg, next_step="check the name, or set the ini key sandbox_recipes")
        return found

    def plan(self, recipe: Recipe, target: Target) -> Plan:
        """The recipe's plan for a target."""
        from pytest_sandbox.plans.resolve import resolve

        if "versions" not in self._cache:
            self._cache["versions"] = self.settings.versions()
        return resolve(recipe, target, catalogue=self.catalogue, versions=self._cache["versions"])

    @property
    def downloader(self) -> Downloader:
        """Fetches artefacts on the host, into a cache that runs share."""
        if "downloader" not in self._cache:
            from pytest_sandbox.folders import cache_folder
            from pytest_sandbox.plans.downloads import Downloader

            self._cache["downloader"] = Downloader(
                cache_folder(self.environ), offline=self.settings.offline, say=self.say
            )
        found: Downloader = self._cache["downloader"]
        return found

    # -- engine --------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """The engine, found on first use; raises RuntimeUnavailable (the same one every time)."""
        with self._lock:
            if self._unavailable is not None:
                raise self._unavailable
            if self._runtime is None:
                try:
                    with self.clock.phase("engine"):
                        self._runtime = self._find_runtime()
                except RuntimeUnavailable as missing:
                    self._unavailable = missing
                    raise
            return self._runtime

    def _find_runtime(self) -> Runtime:
        atexit.register(self.close)
        given = self.find(self.settings.runtime)
        if given is not None:
            return given
        from pytest_sandbox.runtimes.detect import choose_runtime
        from pytest_sandbox.runtimes.runs import announce, end_with_parent

        choice = choose_runtime(self.settings.runtime, self.environ, self.settings)
        runtime, self.why = choice.runtime, choice.why
        if not self.main:
            end_with_parent()
        self._aside = threading.Thread(
            target=self._prepare,
            args=[runtime, announce(self.run)],
            name="pytest-sandbox-aside",
            daemon=True,
        )
        self._aside.start()
        info = runtime.info()
        if info.weak_limits and not self.has_header and self.worker in {"", "gw0"}:
            self.say(weaker(info))
        return runtime

    @staticmethod
    def _prepare(runtime: Runtime, first: bool) -> None:
        """Beside the tests: what the first of them will need is started, and what dead runs left,
        which is in nobody's way, is removed.
        """
        from pytest_sandbox.runtimes.runs import reap_dead

        warm = getattr(runtime, "warm", None)
        with suppress(SandboxError, OSError):  # who needs it is told
            if warm is not None:
                warm()
        with suppress(SandboxError, OSError):  # the next run's reaper looks again
            if first:
                reap_dead(runtime)

    @property
    def info(self) -> RuntimeInfo:
        """What the engine says of itself (asked once)."""
        if self._info is None:
            self._info = self.runtime.info()
        return self._info

    @property
    def owner(self) -> Owner:
        """This process, as the owner of what it starts."""
        if "owner" not in self._cache:
            from pytest_sandbox.runtimes.owner import current_owner

            self._cache["owner"] = current_owner(self.run)
        found: Owner = self._cache["owner"]
        return found

    def default_target(self, family: str = "debian") -> Target:
        """`family` on the engine's own architecture."""
        arches = self.info.arches
        return Target("linux", arches[0] if arches else host_arch(), family)

    # -- images --------------------------------------------------------------------------------

    @property
    def families(self) -> Mapping[str, Family]:
        """The families with the user's overrides."""
        if "families" not in self._cache:
            from pytest_sandbox.images.families import load_families

            self._cache["families"] = load_families(self.settings.families, self.settings.bases())
        found: Mapping[str, Family] = self._cache["families"]
        return found

    @property
    def certificates(self) -> tuple[str, ...]:
        """The host's extra CA certificates as PEM."""
        if "certificates" not in self._cache:
            from pytest_sandbox.provision.certificates import extra_certificates

            self._cache["certificates"] = extra_certificates(self.environ)
        found: tuple[str, ...] = self._cache["certificates"]
        return found

    def base(self, target: Target, reference: str) -> None:
        """Make sure that a base image is at hand; raises ImageUnavailable (at once when it failed
        before).
        """
        from pytest_sandbox.runtimes.images import ensure_base

        key = Target(target.os, target.arch, target.family, gpu=reference)
        with self._lock:
            known = self._bases.get(key)
            if known is not None:
                raise known
            if key in self._bases:
                return
            try:
                ensure_base(
                    self.runtime,
                    reference,
                    target,
                    pull=self.settings.pull,  # type: ignore[arg-type]  # checked when read
                    offline=self.settings.offline,
                    say=self.say,
                )
            except ImageUnavailable as missing:
                self._bases[key] = missing
                raise
            self._bases[key] = None

    def image(self, requirements: SystemRequirements, target: Target) -> ReadyImage:
        """The image that meets the requirements, built if it must be; raises SpecError,
        ImageUnavailable, BuildFailed.
        """
        with self.clock.phase("image"):
            return self._image(requirements, target)

    def _image(self, requirements: SystemRequirements, target: Target) -> ReadyImage:
        from pytest_sandbox.images.name import image_hash

        spec = self._spec(requirements, target)
        self.base(target, spec.base)
        # A base that was bootstrapped just now has a digest only from here on.
        spec = self._spec(requirements, target)
        key = f"{image_hash(spec)}-{target.arch}"
        with self._lock:
            if key in self._images:
                ready = self._images[key]
                return ReadyImage(ready.info, ready.spec, hit=True, seconds=0.0)
            done = self._image_builds().get(spec, self.clock)
            ready = ReadyImage(done.info, spec, done.hit, done.seconds)
            self._images[key] = ready
            return ready

    def image_at_hand(self, requirements: SystemRequirements, target: Target) -> ReadyImage | None:
        """The image, if it is there and needs neither a build nor a registry. Raises as `image`."""
        from pytest_sandbox.runtimes.bases import at_hand
        from pytest_sandbox.runtimes.images import is_at_hand

        settings = self.settings
        if settings.rebuild or settings.pull == "always":
            return None
        with self.clock.phase("image"):
            spec = self._spec(requirements, target)
            if at_hand(self.runtime, spec.base, target) is None or not (
                spec.plain
                or is_at_hand(self.runtime, spec, settings.image_prefix, settings.image_age)
            ):
                return None
            return self._image(requirements, target)

    def _image_builds(self) -> ImageBuilds:
        if self._builds is None:
            from pytest_sandbox.runtimes.image_builds import ImageBuilds, Rules

            settings = self.settings
            rules = Rules(
                prefix=settings.image_prefix,
                rebuild=settings.rebuild,
                rebuild_token=self.run,
                pull=settings.pull,  # type: ignore[arg-type]  # checked when read
                offline=settings.offline,
                max_age=settings.image_age,
                network=settings.build_network,  # type: ignore[arg-type]  # same
                limits=settings.build_limits(),
                timeout=settings.build_timeout,
                environ=self.environ,
                worker=int(self.worker.removeprefix("gw") or 0),
                workers=self.workers,
            )
            self._builds = ImageBuilds(self.runtime, rules, expected=self._expected, say=self.say)
        return self._builds

    def _expected(self) -> Iterator[ImageSpec]:
        for requirements, target in self.upcoming():
            with suppress(SandboxError):  # the test itself will say it
                yield self._spec(requirements, target)

    def _spec(self, requirements: SystemRequirements, target: Target) -> ImageSpec:
        from pytest_sandbox.images.spec import derive_spec
        from pytest_sandbox.provision.bases import base_digests

        return derive_spec(
            requirements,
            target,
            families=self.families,
            certificates=self.certificates,
            base_digests=base_digests(target.arch),
        )

    # -- sandboxes -----------------------------------------------------------------------------

    def environment(self, target: Target, network: str) -> dict[str, str]:
        """What commands in a sandbox get: the fixed part, the CA variables, and proxies where
        there is a network.
        """
        from pytest_sandbox.provision.certificates import sandbox_ca_environment
        from pytest_sandbox.provision.proxies import proxy_environment

        env = dict(BASE_ENV)
        if self.certificates:
            env.update(sandbox_ca_environment(target.family))
        if network != "none":
            env.update(proxy_environment(self.environ))
        return env

    def start(
        self,
        image: str,
        target: Target,
        limits: Limits,
        *,
        network: Network = "none",
        no_new_privileges: bool = False,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "/",
        mounts: Sequence[Mount] = (),
        tmpfs: Mapping[str, int] | None = None,
        purpose: str = "",
        ahead: Ahead | None = None,
        digest: str = "",
    ) -> System:
        """A throwaway system, started now; with `ahead` one of the pool may be given (`digest`: the
        image's content, where that is known). `release` ends it.
        """
        from pytest_sandbox.runtimes.base import SandboxSpec

        spec = SandboxSpec(
            image=image,
            target=target,
            limits=self.held(limits),
            network=network,
            no_new_privileges=no_new_privileges,
            env={**self.environment(target, network), **(env or {})},
            user=user,
            cwd=cwd,
            mounts=tuple(mounts),
            tmpfs=dict(tmpfs or {}),
            purpose=purpose,
        )
        with self.clock.phase("acquire"):
            return self.systems.start(spec, ahead, digest)

    def expect(
        self,
        image: str,
        target: Target,
        limits: Limits,
        *,
        network: Network,
        no_new_privileges: bool,
        digest: str,
    ) -> None:
        """`start` will be called with these soon, and `ahead=EXPECTED`: the system is started
        behind the scenes, if this run starts any ahead.
        """
        from pytest_sandbox.runtimes.base import SandboxSpec

        with self.clock.phase("acquire"):
            if self.systems.pool is None:
                return
            spec = SandboxSpec(
                image=image,
                target=target,
                limits=self.held(limits),
                network=network,
                no_new_privileges=no_new_privileges,
                env=self.environment(target, network),
            )
            self.systems.pool.expect(spec, digest)

    @property
    def is_open(self) -> bool:
        """Whether an engine was found, and is still in use."""
        return self._runtime is not None

    @property
    def systems(self) -> Systems:
        """What this process has open, and what waits for its tests; raises RuntimeUnavailable."""
        with self._lock:
            if self._systems is None:
                from pytest_sandbox.systems import Systems

                self._systems = Systems(
                    self.runtime, self.owner, pool=self.settings.pool, workers=self.workers
                )
            return self._systems

    def held(self, limits: Limits) -> Limits:
        """The limits as this engine can hold them: no more CPUs than it has, disk 0 for none."""
        return limits.override(
            cpus=min(limits.cpus, float(self.info.cpus)),
            disk=limits.disk if self.info.disk_limit else 0,
        )

    def shortfalls(self, limits: Limits) -> list[str]:
        """Which of the limits this engine cannot hold as they are, in words for a report."""
        notes = []
        if limits.cpus > self.info.cpus:
            notes.append(f"{limits.cpus:g} CPUs were asked for; the engine has {self.info.cpus}")
        if limits.disk and not self.info.disk_limit:
            storage = self.info.storage or "its storage"
            notes.append(f"no disk limit is held: {storage} of the engine cannot set one")
        if self.info.weak_limits:
            notes.append(weaker(self.info))
        return notes

    def release(self, system: System) -> None:
        """End a system off the caller's path; `close` waits for all of them."""
        if self._systems is not None:  # else it is closed already
            with self.clock.phase("teardown"):
                self._systems.release(system)

    def discard(self, image: str) -> None:
        """Remove a snapshot of this run once the systems that `release` ends are gone."""
        self.systems.after(lambda: self.runtime.remove_image(image))

    def close(self) -> None:
        """End everything that this process started; may be called again."""
        builds, self._builds = self._builds, None
        if builds is not None:
            builds.close()
        systems, self._systems = self._systems, None
        if systems is not None:
            systems.close()
        aside, self._aside = self._aside, None
        if aside is not None:
            aside.join(_REAP)
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            if self.main:
                from pytest_sandbox.runtimes.runs import leave_run

                with suppress(SandboxError):  # the next run's reaper looks again
                    runtime.sweep(self.run)
                leave_run(self.run)
            runtime.close()
            if builds is not None and builds.join():
                runtime.close()  # a build was under way, and may have begun it anew
        atexit.unregister(self.close)

    def sweep_workers(self) -> None:
        """On xdist's controller: remove what workers of this run left, if any of them used an
        engine.
        """
        from pytest_sandbox.runtimes.runs import leave_run

        if leave_run(self.run):
            self.has_header = True  # a worker has said it
            with suppress(RuntimeUnavailable):  # an engine that is gone took everything along
                self.runtime.sweep(self.run)
            self.close()

    # -- what a person is told -----------------------------------------------------------------

    def logs(self, name: str) -> Path | None:
        """A new folder for the full logs of one item, or None where there is no place for them."""
        if self.log_root is None:
            return None
        folder = self.log_root() / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def may_skip(self, error: SandboxError) -> bool:
        """Whether an error says that there is no engine, or no base of a family that nobody named.

        Everything else fails: an image that a test names, a start that the engine refuses.
        """
        if self.settings.require:
            return False
        if error is self._unavailable:
            return True
        from pytest_sandbox.images.spec import NoBase

        return "target" not in self.settings.given and (
            isinstance(error, NoBase) or any(error is known for known in self._bases.values())
        )

    def mask(self, text: str) -> str:
        """The text without the secrets of the host's environment."""
        if "secrets" not in self._cache:
            from pytest_sandbox.provision.proxies import secrets

            self._cache["secrets"] = secrets(self.environ)
        from pytest_sandbox.provision.proxies import masked

        return masked(text, self._cache["secrets"])
