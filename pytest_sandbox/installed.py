"""`installed("jq")`: a recipe installed once per image and plan on this machine, as a snapshot to
fork.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import ImageUnavailable, UsageError
from pytest_sandbox.install import Installer
from pytest_sandbox.keywords import read_options
from pytest_sandbox.limits import PROFILES
from pytest_sandbox.runtimes.last_use import INSTALLED
from pytest_sandbox.sandbox import (
    Snapshot,
    installed_environment,
    once,
    plan_for,
    target_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.plans.model import Plan
    from pytest_sandbox.runtimes.base import ImageInfo
    from pytest_sandbox.session import ReadyImage, RunSession
    from pytest_sandbox.targets import Target

REPOSITORY: Final = INSTALLED
_FORMAT: Final = "2"
"""Raised when installing comes to mean something else, so that older snapshots are not used."""


@dataclass(frozen=True, slots=True)
class _Installation:
    """What is to be installed, and the name of its snapshot: `key` is the hash of all of it."""

    plan: Plan
    ready: ReadyImage
    target: Target
    key: str

    @property
    def reference(self) -> str:
        """The snapshot's name."""
        return f"{REPOSITORY}:{self.key[:16]}"


def installed_snapshot(
    session: RunSession, name: str, keywords: Mapping[str, Any], *, version: str | None = None
) -> Snapshot:
    """The snapshot of a recipe's installation, made if this machine has none for this image and
    plan, or has it no more.

    Cached by content across workers and runs and published only when whole; `--sandbox-rebuild`
    makes it anew. Raises what installing raises: UsageError, PlanError, BuildFailed, StepFailed,
    SandboxTimeout.
    """
    options = read_options(keywords, "installed()")
    if options.image:
        msg = f"installed(): image={options.image!r} has no meaning: the recipe's image is used"
        raise UsageError(msg, next_step="leave image= out")
    target = target_of(session, options)
    wanted = once(
        session,
        ("installed", name, version, target),
        lambda: _look_up(session, name, target, version),
    )
    limits = session.settings.limits(PROFILES[options.profile]).override(**options.limits)
    environment = {**options.env, **installed_environment(wanted.plan, options.env)}
    found = _find(session, wanted) or _make(session, wanted, name)
    return Snapshot(wanted.reference, target, limits, environment, digest=found.digest)


def _look_up(session: RunSession, name: str, target: Target, version: str | None) -> _Installation:
    from pytest_sandbox.images.requirements import requirements_of
    from pytest_sandbox.runtimes.last_use import mark_used

    plan = plan_for(session, session.recipe(name), target, version)
    ready = session.image(requirements_of(plan, target), target)
    found = _Installation(plan, ready, target, _key(session, plan, ready, target))
    mark_used(found.reference)
    return found


def _key(session: RunSession, plan: Plan, ready: ReadyImage, target: Target) -> str:
    from pytest_sandbox.plans.serialize import plan_to_json

    parts = (_FORMAT, session.runtime.name, str(target), ready.info.digest, plan_to_json(plan))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _find(session: RunSession, wanted: _Installation) -> ImageInfo | None:
    """The snapshot, if the engine has it and this run may use it."""
    found = session.runtime.find_image(wanted.reference)
    if found is None or found.labels.get("org.pytest-sandbox.hash") != wanted.key:
        return None
    made_here = found.labels.get("org.pytest-sandbox.made-by") == session.run
    return found if made_here or not session.settings.rebuild else None


def _make(session: RunSession, wanted: _Installation, name: str) -> ImageInfo:
    """Install, unless another process has done so while this one waited for it."""
    from pytest_sandbox.runtimes.locks import image_lock

    with image_lock(wanted.key, say=session.say, what=f"the installation of {name}"):
        found = _find(session, wanted)
        if found is None:
            session.say(f"installing {name} on {wanted.target} for the tests that use it")
            _install(session, wanted)
            found = _find(session, wanted)
    if found is None:
        msg = f"the installation of {name} was removed as soon as it was made"
        raise ImageUnavailable(msg, next_step="look for an `image prune` that runs beside this")
    return found


def _install(session: RunSession, wanted: _Installation) -> None:
    from pytest_sandbox.images.requirements import requirements_of
    from pytest_sandbox.plans.script import compile_plan

    plan = wanted.plan
    needs = requirements_of(plan, wanted.target)
    limits = session.settings.limits(PROFILES[needs.profile])
    network = session.settings.network or ("bridge" if needs.network else "none")
    system = session.start(
        wanted.ready.info.name,
        wanted.target,
        limits,
        network=network,  # type: ignore[arg-type]  # choices were checked when read
        purpose=f"installed-{plan.tool}",
    )
    try:
        installer = Installer(
            system, session.downloader, log=session.logs(f"installed-{plan.tool}")
        )
        with session.clock.phase("install"):
            installer.install(compile_plan(plan))
        system.snapshot(
            name=wanted.reference,
            labels={
                "org.pytest-sandbox.hash": wanted.key,
                "org.pytest-sandbox.made-by": session.run,
                "org.pytest-sandbox.installed": plan.tool,
            },
        )
    finally:
        session.release(system)
