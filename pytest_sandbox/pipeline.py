"""One recipe on one target, from plan to verdict: resolve, image, install, verify, prove."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pytest_sandbox.errors import Blame, Phase, PlanError, SandboxError
from pytest_sandbox.install import (
    GuidanceNeeded,
    Installer,
    downloads,
    is_trusted,
    step_environment,
)
from pytest_sandbox.limits import PROFILES
from pytest_sandbox.plans.model import HOME
from pytest_sandbox.pool import EXPECTED
from pytest_sandbox.proofs.verify import checks, needs_version, run_checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_sandbox.images.requirements import SystemRequirements
    from pytest_sandbox.limits import Limits
    from pytest_sandbox.plans.model import Plan, StepProgram
    from pytest_sandbox.proofs.verify import Check
    from pytest_sandbox.runtimes.base import Network, System
    from pytest_sandbox.session import ReadyImage, RunSession
    from pytest_sandbox.targets import Target


_GRACE = 15.0
"""Seconds: a command ends by its own deadline, so that its system is still there to be kept."""


class Unproved(SandboxError):
    """Nothing failed and nothing was proved: the item is skipped with this reason, never passed."""

    blame = Blame.UNSUPPORTED


@dataclass(slots=True)
class Outcome:
    """What is known of one item: where its time went (seconds by phase), its image, its last
    command.
    """

    recipe: str
    target: Target
    phases: dict[str, float] = field(default_factory=dict)
    image: str = ""
    digest: str = ""
    hit: bool = False
    memory_peak: int = 0
    exit_status: int | None = None
    blame: str = ""
    kept: str = ""
    log: Path | None = None
    notices: list[str] = field(default_factory=list)

    def properties(self) -> list[tuple[str, str]]:
        """The short facts for junit: image, digest, cache hit, phase durations, peak memory, exit
        status.
        """
        found = [("sandbox.recipe", self.recipe), ("sandbox.target", str(self.target))]
        if self.image:
            found += [
                ("sandbox.image", self.image),
                ("sandbox.image.digest", self.digest),
                ("sandbox.image.hit", "true" if self.hit else "false"),
            ]
        found += [(f"sandbox.seconds.{name}", f"{took:.3f}") for name, took in self.phases.items()]
        if self.memory_peak:
            found.append(("sandbox.memory.peak", str(self.memory_peak)))
        if self.exit_status is not None:
            found.append(("sandbox.exit_status", str(self.exit_status)))
        if self.blame:
            found.append(("sandbox.blame", self.blame))
        if self.kept:
            found.append(("sandbox.kept", self.kept))
        return found


@dataclass(slots=True)
class Proof:
    """Proves that one recipe installs and works on one target. `run` raises SandboxError, or
    Unproved for a skip.
    """

    session: RunSession
    name: str
    plan: Callable[[], Plan]
    target: Target
    outcome: Outcome
    node: str = ""
    """The item's name, for folders and the names of sandboxes."""
    further: Callable[[System, Plan], object] | None = None
    """Proofs after verify, in the same system."""
    expected: bool = False
    """Whether `expect` had the first system started, perhaps on another object."""
    begun: Callable[[], object] | None = None
    """Called when the first system is there: the next proof's may be started."""
    _ends: float = 0.0

    def expect(self) -> bool:
        """Have the first system of this proof started, where all that it needs is at hand; whether
        that is so.

        Nothing is built or decided here, and nothing is raised: the proof itself will tell.
        """
        from pytest_sandbox.images.requirements import requirements_of

        session = self.session
        if not session.is_open:
            return False
        with suppress(SandboxError), session.clock.phase("resolve"):
            plan, programs, _ = self._resolve()
            wanted = requirements_of(plan, self.target)
            ready = session.image_at_hand(wanted, self.target)
            if ready is not None:
                trusted = is_trusted(programs)
                session.expect(
                    ready.info.name,
                    self.target,
                    self._longer(session.settings.limits(PROFILES[wanted.profile])),
                    network="none" if trusted else self._network(wanted),
                    no_new_privileges=trusted,
                    digest=ready.info.digest,
                )
                self.expected = True
        return self.expected

    def run(self) -> None:
        """From plan to verdict."""
        try:
            self._run()
        except SandboxError as error:
            self.outcome.blame = str(error.blame)
            result = getattr(error, "result", None)
            if result is not None:
                self.outcome.exit_status = result.returncode
            raise

    def _run(self) -> None:
        with self._phase("resolve"):
            plan, programs, todo = self._resolve()
        with self._phase("image"):
            from pytest_sandbox.images.requirements import requirements_of

            wanted = requirements_of(plan, self.target)
            ready = self.session.image(wanted, self.target)
            self.outcome.image, self.outcome.digest = ready.info.name, ready.info.digest
            self.outcome.hit = ready.hit
        limits = self.session.settings.limits(PROFILES[wanted.profile])
        self.outcome.log = self.session.logs(self.node)
        if is_trusted(programs):
            self._check_only(plan, programs, todo, ready, limits)
        else:
            network = self._network(wanted)
            self._install_and_verify(plan, programs, todo, ready, limits, network=network)
        if not todo:
            msg = "it installs, but the recipe has no check that could prove that it works"
            raise Unproved(msg, phase=Phase.VERIFY, next_step="add a [verify] table")

    def _network(self, wanted: SystemRequirements) -> Network:
        asked = self.session.settings.network or ("bridge" if wanted.network else "none")
        return cast("Network", asked)  # choices were checked when read

    @staticmethod
    def _longer(limits: Limits) -> Limits:
        return limits.override(timeout=limits.timeout + _GRACE)

    # -- resolve -------------------------------------------------------------------------------

    def _resolve(self) -> tuple[Plan, list[StepProgram], list[Check]]:
        from pytest_sandbox.plans.script import compile_plan, install_dir

        try:
            plan = self.plan()
            if not plan.steps:
                msg = f"no step of the recipe is meant for {self.target}"
                raise Unproved(msg, next_step="add a step, or exclude the target in [metadata]")
            if plan.verify is not None and not plan.version and needs_version(plan.verify):
                msg = "the verify table uses {version} and no version is known"
                raise Unproved(msg, next_step=f"--sandbox-version {self.name}=VERSION")
            programs = compile_plan(plan)
        except PlanError as error:
            if error.blame is Blame.UNSUPPORTED:
                raise Unproved(error.what, next_step=error.next_step) from error
            raise
        todo = checks(plan.verify, version=plan.version, install_dir=install_dir(plan))
        return plan, programs, todo

    # -- install and verify --------------------------------------------------------------------

    def _check_only(
        self,
        plan: Plan,
        programs: Sequence[StepProgram],
        todo: Sequence[Check],
        ready: ReadyImage,
        limits: Limits,
    ) -> None:
        # Nothing of the recipe's own runs before verify: one system with its fences does both.
        digest = ready.info.digest
        with self._system(ready.info.name, limits, "none", fenced=True, digest=digest) as system:
            self._install(system, programs, limits)
            self._verify(system, plan, todo, limits)

    def _install_and_verify(
        self,
        plan: Plan,
        programs: Sequence[StepProgram],
        todo: Sequence[Check],
        ready: ReadyImage,
        limits: Limits,
        *,
        network: Network,
    ) -> None:
        image, digest = ready.info.name, ready.info.digest
        with self._system(
            image, limits, network, fenced=False, last=not todo, digest=digest
        ) as system:
            self._install(system, programs, limits)
            with self._phase("acquire"):  # the second system's files
                snapshot = system.snapshot() if todo else ""
        if not todo:
            return
        # Verify on a second system, from the files alone: nothing that a step left running can
        # touch the verdict.
        try:
            with self._system(snapshot, limits, "none", fenced=True) as system:
                self._verify(system, plan, todo, limits)
        finally:
            self.session.discard(snapshot)

    def _deadline(self, limits: Limits) -> float:
        """When install and verify together must be over; the clock starts with the first call."""
        if not self._ends:
            self._ends = time.monotonic() + limits.timeout
        return self._ends

    def _install(self, system: System, programs: Sequence[StepProgram], limits: Limits) -> None:
        installer = Installer(
            system,
            self.session.downloader if downloads(programs) else None,
            log=self.outcome.log,
            timeout=limits.timeout,
            deadline=self._deadline(limits),
        )
        with self._phase("install"):
            try:
                installer.install(programs)
            except GuidanceNeeded as missing:
                raise Unproved(
                    missing.what, phase=Phase.INSTALL, next_step=missing.next_step
                ) from missing
            finally:
                self.outcome.notices += installer.notices

    def _verify(self, system: System, plan: Plan, todo: Sequence[Check], limits: Limits) -> None:
        if not todo:
            return
        from pytest_sandbox.plans.script import verify_environment

        with self._phase("verify"):
            done = run_checks(
                system,
                todo,
                env=verify_environment(plan),
                cwd=HOME,
                log=self.outcome.log,
                timeout=max(1.0, self._deadline(limits) - time.monotonic()),
            )
        self.outcome.exit_status = done[-1][1].returncode
        if self.further is not None:
            with self._phase("prove"):
                self.further(system, plan)

    # -- around --------------------------------------------------------------------------------

    @contextmanager
    def _system(
        self,
        image: str,
        limits: Limits,
        network: Network,
        *,
        fenced: bool,
        last: bool = True,
        digest: str = "",
    ) -> Iterator[System]:
        """One system of the item, `fenced` where verify runs; keep=always keeps the last. With
        `digest`, the content of the image, it is the one that `expect` told of.
        """
        for note in self.session.shortfalls(limits):
            if note not in self.outcome.notices:
                self.outcome.notices.append(note)
        with self._phase("acquire"):
            system = self.session.start(
                image,
                self.target,
                self._longer(limits),
                network=network,
                no_new_privileges=fenced,
                purpose=f"{self.name}-{self.target.id}",
                ahead=EXPECTED if digest and self.expected else None,
                digest=digest,
            )
        try:
            if digest and self.begun is not None:
                self.begun()
            yield system
        except Exception as error:
            if not isinstance(error, Unproved):
                self._keep(system, "failed")
            raise
        else:
            if last:
                self._keep(system, "always")
        finally:
            with self._phase("teardown"):
                self._measure(system)
                self.session.release(system)

    def _measure(self, system: System) -> None:
        if system.alive():
            # It may end in this very moment: then the peak is unknown, and the verdict stands.
            with suppress(SandboxError):
                peak = system.stats().memory_peak
                self.outcome.memory_peak = max(self.outcome.memory_peak, peak)

    def _keep(self, system: System, when: str) -> None:
        setting = self.session.settings.keep
        if setting == "always" or (setting == when == "failed"):
            from pytest_sandbox.runtimes.kept import keep

            try:
                self.outcome.kept = keep(system, env=step_environment(), cwd=HOME)
            except SandboxError as gone:
                self.outcome.notices.append(f"the system could not be kept: {gone.what}")

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            with self.session.clock.phase(phase):
                yield
        finally:
            took = time.monotonic() - began
            self.outcome.phases[phase] = self.outcome.phases.get(phase, 0.0) + took


def describe(outcome: Outcome) -> list[tuple[str, str]]:
    """What a failing report says of the item: target, image, and the commands that ran."""
    lines: list[tuple[str, str]] = [("target", str(outcome.target))]
    if outcome.image:
        short = outcome.digest.removeprefix("sha256:")[:12]
        state = "cached" if outcome.hit else "built"
        lines.append(("image", f"{outcome.image} ({short}, {state})"))
    return lines
