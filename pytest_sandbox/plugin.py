"""What pytest sees: options, marks, fixtures and hooks. Everything heavy is imported where it is
used.
"""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pytest_sandbox.reporting import Board
    from pytest_sandbox.runtimes.base import Runtime
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.targets import Target

_MARKS = (
    (
        "sandbox(family, arch, memory, cpus, pids, disk, network, timeout, env, user, ...): "
        "what the `sandbox` fixture of this test starts"
    ),
    (
        "requires_system(*names): recipes whose system requirements the test needs, "
        "in its sandbox or (without one) on this machine"
    ),
)
_INI_TYPES: dict[str, Any] = {"list": "args", "flag": "bool", "int": "int", "float": "float"}
_FIXTURES = {"sandbox", "sandbox_factory", "installed"}


class _State:
    """What one pytest process knows; kept in config.stash."""

    def __init__(self, config: pytest.Config, run: str) -> None:
        self.config = config
        self.run = run
        self.led_workers = False
        self._settings: Settings | None = None
        self._targets: tuple[Target, ...] | None = None
        self._session: RunSession | None = None
        self._board: Board | None = None
        self._collecting: Any = None

    @property
    def settings(self) -> Settings:
        """The settings of the run; raises pytest.UsageError for a wrong one."""
        if self._settings is None:
            from pytest_sandbox.errors import UsageError
            from pytest_sandbox.settings import read_settings

            def option(key: str) -> Any:
                return self.config.getoption(f"sandbox_{key}", None)

            def ini(key: str) -> Any:
                return self.config.getini(f"sandbox_{key}")

            try:
                self._settings = read_settings(option, ini, os.environ)
            except UsageError as wrong:
                msg = f"{wrong.what}; next: {wrong.next_step}"
                raise pytest.UsageError(msg) from None
        return self._settings

    def check(self) -> None:
        """Read every setting now; raises pytest.UsageError for a wrong one."""
        assert self.targets

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets of the run; raises pytest.UsageError for a pattern that names nothing."""
        if self._targets is None:
            from pytest_sandbox.errors import UsageError
            from pytest_sandbox.recipe_paths import targets_of

            try:
                self._targets = targets_of(self.settings)
            except UsageError as wrong:
                msg = f"{wrong.what}; next: {wrong.next_step}"
                raise pytest.UsageError(msg) from None
        return self._targets

    @property
    def session(self) -> RunSession:
        """The run's session, made on first use."""
        if self._session is None:
            from pytest_sandbox.recipe_paths import folders
            from pytest_sandbox.session import RunSession

            config = self.config
            self._session = RunSession(
                self.settings,
                config.rootpath,
                self.run,
                folders=folders(self.settings.recipes, config.rootpath, config.args),
                worker=os.environ.get("PYTEST_XDIST_WORKER", ""),
                say=self._say,
                find=self._find,
                main=not hasattr(config, "workerinput"),
                log_root=self._log_root,
            )
        return self._session

    @property
    def opened(self) -> RunSession | None:
        """The session if there is one."""
        return self._session

    @property
    def board(self) -> Board:
        """The outcomes of recipe items."""
        if self._board is None:
            from pytest_sandbox.reporting import Board

            self._board = Board()
        return self._board

    @property
    def quiet_board(self) -> bool:
        """Whether there is nothing to show of recipes."""
        return self._board is None

    @property
    def collecting(self) -> Any:
        """What decides which files are recipes."""
        if self._collecting is None:
            from pytest_sandbox.recipe_paths import Chooser

            config = self.config
            named = config.args_source is config.ArgsSource.ARGS
            self._collecting = Chooser(self.settings.recipes, config.rootpath, named=named)
        return self._collecting

    def _find(self, name: str) -> Runtime | None:
        found: Runtime | None = self.config.hook.pytest_sandbox_runtime(
            config=self.config, name=name
        )
        return found

    def _log_root(self) -> Path:
        factory: Any = getattr(self.config, "_tmp_path_factory", None)
        if factory is None:
            import tempfile

            return Path(tempfile.mkdtemp(prefix="pytest-sandbox-logs-"))
        return Path(factory.getbasetemp()) / "sandbox-logs"

    def _say(self, line: str) -> None:
        if self.config.option.verbose < -1:
            return
        capture = self.config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            sys.stderr.write(f"sandbox: {line}\n")
            return
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\nsandbox: {line}")
            sys.stderr.flush()


class _Reports:
    """Takes the reports of recipe items to the board, in the process that has the terminal."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "::install[" in report.nodeid or report.nodeid.endswith("::load"):
            self._state.board.add(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: only workers collect, so they tell which targets yield no item."""
        found = getattr(node, "workeroutput", {}).get("sandbox_unsupported", [])
        self._state.board.unsupported[:] = self._state.board.unsupported or found


STATE = pytest.StashKey[_State]()
SANDBOXES = pytest.StashKey[list["Sandbox"]]()


# -- configuration ---------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sandbox", "prove that software installs (pytest-sandbox)")
    group.addoption(
        "--sandbox",
        action="store_true",
        default=False,
        dest="sandbox",
        help="Collect recipes and install each on clean systems",
    )
    for setting in SETTINGS:
        flag, dest = f"--sandbox-{setting.name}", f"sandbox_{setting.key}"
        if setting.kind == "flag":
            group.addoption(flag, action="store_true", default=None, dest=dest, help=setting.help)
        elif setting.kind == "list":
            group.addoption(
                flag,
                action="append",
                default=None,
                dest=dest,
                metavar=setting.metavar,
                help=f"{setting.help} (repeatable)",
            )
        else:
            choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
            group.addoption(
                flag,
                default=None,
                dest=dest,
                metavar=setting.metavar or "WORD",
                help=setting.help + choices,
            )
        parser.addini(
            dest,
            f"{setting.help} (option {flag}, environment variable {setting.variable})",
            type=_INI_TYPES.get(setting.kind, "string"),
            default=None,
        )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_sandbox import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)
    given: dict[str, Any] = getattr(config, "workerinput", {})
    config.stash[STATE] = _State(config, given.get("sandbox_run") or uuid.uuid4().hex)
    if not given:
        config.pluginmanager.register(_Reports(config.stash[STATE]), "sandbox-reports")
    state = config.stash[STATE]
    if any(config.getoption(f"sandbox_{setting.key}") is not None for setting in SETTINGS):
        state.check()
    if config.getoption("sandbox"):
        state.check()
        _add_recipe_folders(config)
        if not given and not config.option.collectonly:
            from pytest_sandbox.signals import end_on_sigterm

            end_on_sigterm(config)


def _add_recipe_folders(config: pytest.Config) -> None:
    """Without paths on the command line, testpaths or the current folder may miss the recipes."""
    source = config.args_source
    if source is not config.ArgsSource.ARGS:
        from pytest_sandbox.recipe_paths import missing_folders

        state = config.stash[STATE]
        config.args += missing_folders(state.settings.recipes, config.rootpath, config.args)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: every worker has the run's id."""
    state = node.config.stash[STATE]
    node.workerinput["sandbox_run"] = state.run
    state.led_workers = True


# -- collection ------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix not in {".toml", ".json"}:
        return None
    config = parent.config
    explicit = parent.session.isinitpath(file_path)
    if not (explicit or config.getoption("sandbox")):
        return None
    state = config.stash[STATE]
    if not explicit and (
        file_path.suffix == ".json"
        or not state.collecting.wants(file_path, parent.session.isinitpath)
    ):
        return None  # a plan is run only where its file is named
    from pytest_sandbox.collect import PlanFile, RecipeFile

    kind = PlanFile if file_path.suffix == ".json" else RecipeFile
    return kind.from_parent(
        parent,
        path=file_path,
        run_session=state.session,
        targets=state.targets,
        unsupported=state.board.unsupported,
    )


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sandbox_runtime(pytestconfig: pytest.Config) -> Runtime:
    """The engine of this run (docker, ...). Skips where there is none; fails with
    --sandbox-require.
    """
    session = pytestconfig.stash[STATE].session
    with _explained(session):
        return session.runtime


@pytest.fixture
def sandbox_factory(
    request: pytest.FixtureRequest, sandbox_runtime: Runtime
) -> Iterator[Callable[..., Sandbox]]:
    """Start several sandboxes in one test: takes the keywords of the `sandbox` mark, and
    `snapshot=`.
    """
    del sandbox_runtime
    session = request.config.stash[STATE].session
    item = request.node
    opened: list[Sandbox] = item.stash.setdefault(SANDBOXES, [])

    def start(*, snapshot: Any = None, **keywords: Any) -> Sandbox:
        from pytest_sandbox.sandbox import open_sandbox

        __tracebackhide__ = True
        with _explained(session, failures=False):
            sandbox = open_sandbox(
                session,
                {**_mark_keywords(item), **keywords},
                requires=_required(item),
                snapshot=snapshot,
                where="sandbox_factory()",
                purpose=item.name,
            )
        opened.append(sandbox)
        return sandbox

    yield start
    for sandbox in opened:
        sandbox.close()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandbox_factory: Callable[..., Sandbox]) -> Sandbox:
    """One throwaway Linux system with limits, as the `sandbox` mark says (default: debian)."""
    with _explained(request.config.stash[STATE].session):
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
        with _explained(session):
            snapshot = installed_snapshot(
                session, name, {**_mark_keywords(item), **keywords}, version=version
            )
            return sandbox_factory(snapshot=snapshot, **keywords)

    return fork


class _explained:
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
        from pytest_sandbox.session import is_absence

        text = self._session.mask(str(error))
        if error.details:
            text += f"\n{self._session.mask(error.details)}"
        if is_absence(error) and not self._session.settings.require:
            pytest.skip(text)
        if self._failures:
            pytest.fail(text, pytrace=False)


def _mark_keywords(item: pytest.Item) -> dict[str, Any]:
    """The keywords of all `sandbox` marks of a test, key by key; the closest mark wins."""
    from pytest_sandbox.errors import UsageError

    keywords: dict[str, Any] = {}
    for mark in item.iter_markers("sandbox"):
        if mark.args:
            msg = f"@pytest.mark.sandbox takes keywords only, got {mark.args!r}"
            raise UsageError(msg, next_step='write it like sandbox(family="alpine")')
        for key, value in mark.kwargs.items():
            keywords.setdefault(key, value)
    return keywords


def _required(item: pytest.Item) -> list[str]:
    """The names of all requires_system marks, each once, outermost first."""
    from pytest_sandbox.errors import UsageError

    names: list[str] = []
    for mark in item.iter_markers("requires_system"):
        if mark.kwargs or not mark.args or not all(isinstance(name, str) for name in mark.args):
            msg = f"@pytest.mark.requires_system takes recipe names, got {mark.args!r}"
            raise UsageError(msg, next_step='write it like requires_system("docker")')
        names[:0] = [name for name in mark.args if name not in names]
    return names


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("requires_system") is None:
        return
    state = item.config.stash[STATE]
    if _FIXTURES & set(getattr(item, "fixturenames", ())):
        return
    from pytest_sandbox.hostcheck import lacking

    with _explained(state.session):
        for name in _required(item):
            reason = lacking(state.session.recipe(name))
            if reason:
                pytest.skip(reason)


# -- reports ---------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    errors = sys.modules.get("pytest_sandbox.errors")
    if errors is not None and call.excinfo is not None:
        error, crash = call.excinfo.value, getattr(report.longrepr, "reprcrash", None)
        if isinstance(error, errors.SandboxError) and crash is not None:
            # The short summary has room for one line: phase and blame come first in it.
            crash.message = item.config.stash[STATE].session.mask(str(error))
    used = item.stash.get(SANDBOXES, None)
    if not used or call.when not in {"setup", "call"}:
        return report
    from pytest_sandbox.reporting import describe_sandbox

    state = item.config.stash[STATE]
    keep = state.settings.keep
    for number, sandbox in enumerate(used, 1):
        text = describe_sandbox(sandbox)
        if (keep == "always" and call.when == "call") or (keep == "failed" and report.failed):
            text += f"\nenter it: {_kept(sandbox)}"
        if report.failed:
            title = f"Sandbox {number}" if len(used) > 1 else "Sandbox"
            report.sections.append((title, state.session.mask(text)))
        elif keep == "always":
            state.session.say(f"{item.nodeid}: {_last_line(text)}")
    return report


def _kept(sandbox: Sandbox) -> str:
    from pytest_sandbox.errors import SandboxError

    try:
        return sandbox.shell()
    except SandboxError as gone:
        return f"it could not be kept: {gone.what}"


def _last_line(text: str) -> str:
    return text.rsplit("\n", 1)[-1]


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("sandbox"):
        return None
    state = config.stash[STATE]
    names = ", ".join(target.id for target in state.targets)
    runtime = state.settings.runtime
    return f"sandbox: runtime {runtime}, {len(state.targets)} targets ({names})"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    state = config.stash[STATE]
    if state.quiet_board:
        return
    failures = state.board.failures(terminalreporter._tw.fullwidth)
    if failures:
        terminalreporter.section("sandbox failures")
        for line in failures:
            terminalreporter.write_line(line)
    table = state.board.table()
    if table:
        terminalreporter.section("sandbox: recipes x targets")
        for line in table:
            terminalreporter.write_line(line)
    if "s" in terminalreporter.reportchars or "a" in terminalreporter.reportchars.lower():
        for nodeid, reason in state.board.unsupported:
            terminalreporter.write_line(f"UNSUPPORTED {nodeid}: {reason}")


# -- the end ---------------------------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    state = session.config.stash[STATE]
    if state.opened is not None:
        state.opened.close()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["sandbox_unsupported"] = state.board.unsupported


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(STATE, None)
    if state is None:
        return
    if state.opened is not None:
        state.opened.close()
    if state.led_workers:
        state.session.sweep_workers()
