"""`installed("jq")`: a recipe installed once per image and plan on this machine, as a snapshot to
fork.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import UsageError
from pytest_sandbox.install import Installer
from pytest_sandbox.keywords import read_options
from pytest_sandbox.limits import PROFILES
from pytest_sandbox.runtimes.last_use import INSTALLED
from pytest_sandbox.sandbox import (
    Snapshot,
    installed_environment,
    plan_for,
    target_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.plans.model import Plan
    from pytest_sandbox.session import ReadyImage, RunSession
    from pytest_sandbox.targets import Target

REPOSITORY: Final = INSTALLED
_FORMAT: Final = "1"


def installed_snapshot(
    session: RunSession, name: str, keywords: Mapping[str, Any], *, version: str | None = None
) -> Snapshot:
    """The snapshot of a recipe's installation, made if this machine has none for this image and
    plan.

    Cached by content across workers and runs and published only when whole; `--sandbox-rebuild`
    makes it anew. Raises what installing raises: UsageError, PlanError, BuildFailed, StepFailed,
    SandboxTimeout.
    """
    from pytest_sandbox.images.requirements import requirements_of
    from pytest_sandbox.runtimes.last_use import mark_used
    from pytest_sandbox.runtimes.locks import image_lock

    options = read_options(keywords, "installed()")
    if options.image:
        msg = f"installed(): image={options.image!r} has no meaning: the recipe's image is used"
        raise UsageError(msg, next_step="leave image= out")
    target = target_of(session, options)
    recipe = session.recipe(name)
    plan = plan_for(session, recipe, target, version)
    wanted = requirements_of(plan, target)
    ready = session.image(wanted, target)
    key = _key(ready, plan)
    reference = f"{REPOSITORY}:{key[:16]}"
    limits = session.settings.limits(PROFILES[options.profile]).override(**options.limits)
    environment = {**options.env, **installed_environment(plan, options.env)}
    snapshot = Snapshot(reference, target, limits, environment)
    mark_used(reference)
    if _is_ready(session, reference, key):
        return snapshot
    with image_lock(key, say=session.say):
        if not _is_ready(session, reference, key):
            session.say(f"installing {name} on {target} for the tests that use it")
            _install(session, plan, ready, target, reference=reference, key=key)
    return snapshot


def _key(ready: ReadyImage, plan: Plan) -> str:
    from pytest_sandbox.plans.serialize import plan_to_json

    text = "\n".join((_FORMAT, ready.info.digest, plan_to_json(plan)))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ready(session: RunSession, reference: str, key: str) -> bool:
    found = session.runtime.find_image(reference)
    if found is None or found.labels.get("org.pytest-sandbox.hash") != key:
        return False
    return (
        not session.settings.rebuild
        or found.labels.get("org.pytest-sandbox.made-by") == session.run
    )


def _install(
    session: RunSession, plan: Plan, ready: ReadyImage, target: Target, *, reference: str, key: str
) -> None:
    from pytest_sandbox.images.requirements import requirements_of
    from pytest_sandbox.plans.script import compile_plan

    wanted = requirements_of(plan, target)
    limits = session.settings.limits(PROFILES[wanted.profile])
    network = session.settings.network or ("bridge" if wanted.network else "none")
    system = session.start(
        ready.info.name,
        target,
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
            name=reference,
            labels={
                "org.pytest-sandbox.hash": key,
                "org.pytest-sandbox.made-by": session.run,
                "org.pytest-sandbox.installed": plan.tool,
            },
        )
    finally:
        session.release(system)
