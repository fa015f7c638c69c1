"""A recipe file becomes test items: `recipes/jq.toml::install[debian-amd64]`, one for each target.

Collecting only reads text: no engine, no network, no clock.
"""

from __future__ import annotations

import os
import shlex
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import (
    PlanError,
    RecipeError,
    RuntimeUnavailable,
    SandboxError,
    printable,
)
from pytest_sandbox.options import SETTINGS
from pytest_sandbox.recipes.load import read_recipe
from pytest_sandbox.recipes.select import unsupported_reason
from pytest_sandbox.reporting import ABSENT, HEADLINE
from pytest_sandbox.state import STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Self

    from _pytest._code.code import ExceptionInfo, TerminalRepr

    from pytest_sandbox.pipeline import Outcome
    from pytest_sandbox.plans.model import Plan
    from pytest_sandbox.session import RunSession
    from pytest_sandbox.targets import Target

OUTCOME: pytest.StashKey[Outcome] = pytest.StashKey()
_FIXTURES = pytest.StashKey[Any]()


_NOT_REPRODUCED = {"keep", "rebuild", "recipes", "require"}


class RecipeWarning(pytest.PytestWarning):
    """Something in a recipe that the format silently ignores."""


def _install(request: pytest.FixtureRequest) -> None:
    """The body of every recipe item."""
    item = request.node
    assert isinstance(item, RecipeItem)
    item.prove()


class RecipeFile(pytest.File):
    """One recipe file."""

    run_session: RunSession
    targets: Sequence[Target]
    unsupported: list[tuple[str, str]]

    @classmethod
    def from_parent(  # type: ignore[override]  # pytest's own way to add arguments
        cls,
        parent: pytest.Collector,
        *,
        path: Path,
        run_session: RunSession,
        targets: Sequence[Target],
        unsupported: list[tuple[str, str]],
    ) -> Self:
        """A node for `path`; `unsupported` collects (node id, reason) of targets that yield no
        item.
        """
        node: Self = super().from_parent(parent, path=path)
        node.run_session = run_session
        node.targets = targets
        node.unsupported = unsupported
        return node

    def collect(self) -> Iterable[pytest.Item]:
        try:
            recipe, findings = read_recipe(self.path)
        except RecipeError as error:
            yield BrokenRecipe.from_parent(self, name="load", error=error)
            return
        for finding in findings:
            text = f"{finding.key}: {finding.message}" if finding.key else finding.message
            if finding.suggestion:
                text += f"; {finding.suggestion}"
            warnings.warn_explicit(
                RecipeWarning(text), RecipeWarning, str(self.path), finding.line or 1
            )
        tags = recipe.metadata.tags
        wanted: list[Target] = []
        for target in self.targets:
            if reason := unsupported_reason(recipe, target):
                self.unsupported.append((f"{self.nodeid}::install[{target.id}]", reason))
            else:
                wanted.append(target)
        yield from _items(self, recipe.name, wanted, partial(self.run_session.plan, recipe), tags)


class PlanFile(RecipeFile):
    """A plan in JSON, perhaps of another tool: run as it stands, on the systems that it fits."""

    def collect(self) -> Iterable[pytest.Item]:
        from pytest_sandbox.plans.serialize import plan_from_json

        try:
            plan = plan_from_json(self.path.read_text(encoding="utf-8"), str(self.path))
        except (PlanError, OSError, UnicodeDecodeError) as error:
            wrong = error if isinstance(error, SandboxError) else PlanError(str(error))
            yield BrokenRecipe.from_parent(self, name="load", error=wrong)
            return
        platform = plan.platform
        wanted = [
            target
            for target in self.targets
            if (target.os, target.arch) == (platform.os, platform.arch)
            and platform.linux_family in {"", target.family}
        ]
        if not wanted:
            fits = f"{platform.os}/{platform.arch}/{platform.linux_family or '*'}"
            self.unsupported.append((self.nodeid, f"the plan is for {fits}"))
        yield from _items(self, plan.tool, wanted, lambda _: plan, [])


def _items(
    parent: RecipeFile,
    tool: str,
    targets: Iterable[Target],
    plan_for: Callable[[Target], Plan],
    tags: Sequence[str],
) -> Iterable[pytest.Item]:
    # Fixtures depend on the folder only: the items of its files share what pytest found.
    folder = parent.parent
    shared = folder.stash.get(_FIXTURES, None) if folder and not parent.own_markers else None
    words = {*tags, tool} if tags or tool != parent.path.stem else ()
    for target in targets:
        item = RecipeItem.from_parent(
            parent, name=f"install[{target.id}]", callobj=_install, fixtureinfo=shared
        )
        shared = item._fixtureinfo
        item.tool, item.plan_for, item.target = tool, plan_for, target
        item.run_session = parent.run_session
        if words:
            item.extra_keyword_matches.update(words)
        yield item
    if folder and not parent.own_markers and shared is not None:
        folder.stash[_FIXTURES] = shared


class RecipeItem(pytest.Function):
    """One recipe on one target: green when it installed and its check held on a clean system."""

    tool: str
    plan_for: Callable[[Target], Plan]
    target: Target
    run_session: RunSession
    expected = False

    def plan(self) -> Plan:
        """What is to be done on the item's target. Raises PlanError."""
        return self.plan_for(self.target)

    def prove(self) -> None:
        """Run the pipeline; raises SandboxError for a failure, skips where nothing was proved."""
        from pytest_sandbox.pipeline import Outcome, Proof, Unproved

        outcome = Outcome(self.tool, self.target)
        self.stash[OUTCOME] = outcome
        session = self.run_session
        node = f"{self.tool}-{self.target.id}"
        proof = Proof(
            session, self.tool, self.plan, self.target, outcome, node=node, further=self._further
        )
        proof.expected, proof.begun = self.expected, self._expect_next
        try:
            proof.run()
        except Unproved as reason:
            pytest.skip(session.mask(_one_line(reason)))
        except SandboxError as error:
            if session.may_skip(error):
                whose = "" if isinstance(error, RuntimeUnavailable) else f"{self.target.family}: "
                pytest.skip(session.mask(f"{ABSENT}{whose}{error}"))
            raise
        else:
            if outcome.kept:
                session.say(f"{self.name}: enter it with pytest-sandbox shell {outcome.kept}")
        finally:
            self.user_properties += outcome.properties()
            if outcome.notices:
                notes = session.mask(printable("\n".join(outcome.notices)))
                self.add_report_section("call", "sandbox notes", notes)

    def expect(self) -> None:
        """Its turn comes next: what it will need is prepared."""
        from pytest_sandbox.pipeline import Outcome, Proof

        outcome = Outcome(self.tool, self.target)
        proof = Proof(self.run_session, self.tool, self.plan, self.target, outcome)
        self.expected = proof.expect()

    def _expect_next(self) -> None:
        """The first item's engine and image were not there when this was tried before its turn."""
        running, following = self.config.stash[STATE].following or (None, None)
        if running is self and isinstance(following, RecipeItem) and not following.expected:
            following.expect()

    def _further(self, system: object, plan: object) -> None:
        self.config.hook.pytest_sandbox_prove(config=self.config, system=system, plan=plan)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, 0, f"recipe: {self.tool} [{self.target.id}]"

    def repr_failure(  # type: ignore[override]  # pytest.Function's own is narrower than Node's
        self, excinfo: ExceptionInfo[BaseException]
    ) -> str | TerminalRepr:
        from pytest_sandbox.install import explain
        from pytest_sandbox.pipeline import describe

        error = excinfo.value
        if not isinstance(error, SandboxError):
            return super().repr_failure(excinfo)
        session, outcome = self.run_session, self.stash.get(OUTCOME, None)
        lines = [f"recipe: {self.path}"]
        if outcome is not None:
            lines += [f"{name}: {value}" for name, value in describe(outcome)]
        lines += explain(error)
        if outcome is not None:
            lines += [f"note: {notice}" for notice in outcome.notices]
            if outcome.log is not None:
                lines.append(f"logs: {outcome.log}")
        lines.append(f"reproduce: {self._reproduce()}")
        if outcome is not None and outcome.kept:
            lines.append(f"enter it: pytest-sandbox shell {outcome.kept}")
        headline = session.mask(error.headline())
        self.user_properties.append((HEADLINE, headline))
        body = session.mask(printable("\n".join(lines)))
        return _failure(headline, body, self.path)

    def _reproduce(self) -> str:
        settings = self.run_session.settings
        here = self.config.invocation_params.dir
        words = ["pytest", "--sandbox", f"{os.path.relpath(self.path, here)}::{self.name}"]
        for setting in SETTINGS:
            if setting.key not in settings.given or setting.key in _NOT_REPRODUCED:
                continue
            value = getattr(settings, setting.key)
            option = f"--sandbox-{setting.name}"
            if setting.key == "target":
                words += [option, str(self.target)]
            elif setting.kind == "flag":
                words += [option] if value else []
            elif setting.kind == "list":
                words += [word for one in value for word in (option, one)]
            elif setting.kind == "age":
                words += [option, f"{value:g}s"]
            else:
                words += [option, str(value)]
        return shlex.join(words)


class BrokenRecipe(pytest.Item):
    """The one failing item of a recipe file that cannot be read."""

    error: SandboxError

    @classmethod
    def from_parent(  # type: ignore[override]  # pytest's own way to add arguments
        cls, parent: pytest.Collector, *, name: str, error: SandboxError
    ) -> Self:
        """An item that fails with `error`."""
        node: Self = super().from_parent(parent, name=name)
        node.error = error
        return node

    def runtest(self) -> None:
        raise self.error

    def reportinfo(self) -> tuple[Path, int | None, str]:
        line = getattr(self.error, "line", None)
        return self.path, line - 1 if line else None, f"recipe: {self.path.name}"

    def repr_failure(  # type: ignore[override]  # Node's own signature allows more styles
        self, excinfo: ExceptionInfo[BaseException]
    ) -> str | TerminalRepr:
        if excinfo.value is not self.error:
            return super().repr_failure(excinfo)
        headline = self.error.headline()
        self.user_properties.append((HEADLINE, headline))
        body = f"lint it: pytest-sandbox lint {self.path}" if self.path.suffix == ".toml" else ""
        return _failure(headline, body, self.path, getattr(self.error, "line", None) or 1)


def _one_line(error: SandboxError) -> str:
    text = error.what + (f"; next: {error.next_step}" if error.next_step else "")
    return printable(" ".join(text.split()))


def _failure(headline: str, body: str, path: Path, line: int = 1) -> TerminalRepr:
    """A report that begins with the headline, and carries it to the short summary (also from a
    worker).
    """
    try:
        # Where in our own code it was raised says nothing to the reader, so a new one will do.
        raise RuntimeError(headline)
    except RuntimeError:
        found: Any = pytest.ExceptionInfo.from_current().getrepr(style="native")
    entry = found.reprtraceback.reprentries[0]
    del found.reprtraceback.reprentries[1:]
    entry.lines[:] = [f"{headline}\n", *(f"  {text}\n" for text in body.splitlines())]
    found.reprcrash.message = headline
    found.reprcrash.path, found.reprcrash.lineno = str(path), line
    return found  # type: ignore[no-any-return]  # getrepr's own type hides the parts that are set here
