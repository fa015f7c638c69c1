"""The fixtures, and how their marks are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.state import SANDBOXES, STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.runtimes.base import Runtime
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession


@pytest.fixture(scope="session")
def sandbox_runtime(pytestconfig: pytest.Config) -> Runtime:
    """The engine of this run (docker, ...). Skips where there is none; fails with
    --sandbox-require.
    """
    session = pytestconfig.stash[STATE].session
    if session.main:
        from pytest_sandbox.signals import end_on_sigterm

        end_on_sigterm(pytestconfig)
    with explained(session):
        return session.runtime


@pytest.fixture
def sandbox_factory(
    request: pytest.FixtureRequest, sandbox_runtime: Runtime
) -> Iterator[Callable[..., Sandbox]]:
    """Start several sandboxes in one test: takes the keywords of the `sandbox` mark, and
    `snapshot=`.
    """
    del sandbox_runtime
    state = request.config.stash[STATE]
    session = state.session
    item = request.node
    opened: list[Sandbox] = item.stash.setdefault(SANDBOXES, [])

    def start(*, snapshot: Any = None, **keywords: Any) -> Sandbox:
        from pytest_sandbox.errors import UsageError
        from pytest_sandbox.sandbox import Snapshot, open_sandbox

        __tracebackhide__ = True
        if snapshot is not None and not isinstance(snapshot, Snapshot):
            msg = f"sandbox_factory(): snapshot={snapshot!r} is no Snapshot"
            raise UsageError(msg, next_step="give what sandbox.snapshot() returned")
        with explained(session, failures=False):
            sandbox = open_sandbox(
                session,
                {**mark_keywords(item), **keywords},
                requires=required(item),
                snapshot=snapshot,
                where="sandbox_factory()",
                purpose=item.name,
                ahead=state.ahead(item, plain=snapshot is None and not keywords),
            )
        opened.append(sandbox)
        return sandbox

    yield start
    for sandbox in opened:
        sandbox.close()
    opened.clear()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandbox_factory: Callable[..., Sandbox]) -> Sandbox:
    """One throwaway Linux system with limits, as the `sandbox` mark says (default: debian)."""
    with explained(request.config.stash[STATE].session):
        return sandbox_factory()


@pytest.fixture
def installed(
    request: pytest.FixtureRequest, sandbox_factory: Callable[..., Sandbox]
) -> Callable[..., Sandbox]:
    """Fork of a recipe's installation: `installed("jq")` installs once for all tests, workers and
    runs.
    """
    session = request.config.stash[STATE].session
    item = request.node

    def fork(name: str, *, version: str | None = None, **keywords: Any) -> Sandbox:
        from pytest_sandbox.installed import installed_snapshot

        __tracebackhide__ = True
        with explained(session):
            snapshot = installed_snapshot(
                session, name, {**mark_keywords(item), **keywords}, version=version
            )
            return sandbox_factory(snapshot=snapshot, **keywords)

    return fork


class explained:
    """Turn our errors in set-up into a skip (no engine, no base) or a plain failure.

    Without `failures` all but the skip stays an exception, for the test's own code to see.
    """

    def __init__(self, session: RunSession, *, failures: bool = True) -> None:
        self._session = session
        self._failures = failures

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from pytest_sandbox.errors import SandboxError

        if not isinstance(error, SandboxError):
            return
        from pytest_sandbox.reporting import ABSENT

        text = self._session.mask(str(error))
        if error.details:
            text += f"\n{self._session.mask(error.details)}"
        try:
            if self._session.may_skip(error):
                pytest.skip(f"{ABSENT}{text}")
            if self._failures:
                pytest.fail(text, pytrace=False)
        except pytest.fail.Exception as plain:
            raise plain from None


def mark_keywords(item: pytest.Item) -> dict[str, Any]:
    """The keywords of all `sandbox` marks of a test, key by key; the closest mark wins.

    Raises UsageError for an unknown key or a bad value.
    """
    from pytest_sandbox.errors import UsageError
    from pytest_sandbox.keywords import read_options

    keywords: dict[str, Any] = {}
    for mark in item.iter_markers("sandbox"):
        if mark.args:
            msg = f"@pytest.mark.sandbox takes keywords only, got {mark.args!r}"
            raise UsageError(msg, next_step='write it like sandbox(family="alpine")')
        for key, value in mark.kwargs.items():
            keywords.setdefault(key, value)
    read_options(keywords, "@pytest.mark.sandbox")
    return keywords


def required(item: pytest.Item) -> list[str]:
    """The names of all requires_system marks, each once, outermost first."""
    from pytest_sandbox.errors import UsageError

    names: list[str] = []
    for mark in item.iter_markers("requires_system"):
        if mark.kwargs or not mark.args or not all(isinstance(name, str) for name in mark.args):
            msg = f"@pytest.mark.requires_system takes recipe names, got {mark.args!r}"
            raise UsageError(msg, next_step='write it like requires_system("docker")')
        names[:0] = [name for name in mark.args if name not in names]
    return names
