"""What pytest sees: options, marks, fixtures and hooks. Everything heavy is imported where it is
used.
"""

from __future__ import annotations

import os
import sys
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.fixtures import (
    explained,
    installed,
    required,
    sandbox,
    sandbox_factory,
    sandbox_runtime,
)
from pytest_sandbox.options import SETTINGS
from pytest_sandbox.state import SANDBOXES, STATE, State

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from pytest_sandbox.images.requirements import SystemRequirements
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.targets import Target

__all__ = ["installed", "sandbox", "sandbox_factory", "sandbox_runtime"]

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
_INI_TYPES: dict[str, Any] = {
    "list": "args",
    "flag": "bool",
    "int": "int",
    "count": "int",
    "float": "float",
}
_PLANNED = 500
"""The images of so many items are planned together."""
_FIXTURES = {"sandbox", "sandbox_factory", "installed"}


class _Reports:
    """Takes the reports of recipe items to the board, in the process that has the terminal."""

    def __init__(self, state: State) -> None:
        self._state = state

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and "Skipped: sandbox: " in str(report.longrepr):
            self._state.board.absent(report)  # also of tests that are no recipes
        if "::install[" in report.nodeid or report.nodeid.endswith("::load"):
            self._state.board.add(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: only workers collect, so they tell which targets yield no item."""
        found = getattr(node, "workeroutput", {}).get("sandbox_unsupported", [])
        self._state.board.unsupported[:] = self._state.board.unsupported or found


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
    config.stash[STATE] = State(config, given.get("sandbox_run") or uuid.uuid4().hex)
    if _asks_for_durations(config) and config.stash[STATE].settings.durations:
        from pytest_sandbox.durations import Durations

        config.stash[STATE].durations = durations = Durations(config)
        config.pluginmanager.register(durations, "sandbox-durations")
    if not given:
        config.pluginmanager.register(_Reports(config.stash[STATE]), "sandbox-reports")
    state = config.stash[STATE]
    if any(config.getoption(f"sandbox_{setting.key}") is not None for setting in SETTINGS):
        state.check()
    if config.getoption("sandbox"):
        state.check()
        _spawn_ahead(state)
        _add_recipe_folders(config)
        if not given and not config.option.collectonly:
            from pytest_sandbox.signals import end_on_sigterm

            end_on_sigterm(config)


def _spawn_ahead(state: State) -> None:
    """The process that works for sandboxes starts while pytest collects."""
    config = state.config
    starts = state.settings.runtime in {"auto", "oci"} and sys.platform == "linux"
    options = config.option
    others_work = getattr(options, "numprocesses", None) or getattr(options, "tx", None)
    if others_work and not hasattr(config, "workerinput"):
        return
    if not starts or options.collectonly:
        return
    if not config.hook.pytest_sandbox_runtime.get_hookimpls():
        from pytest_sandbox.runtimes.oci import ahead

        ahead.begin()


def _asks_for_durations(config: pytest.Config) -> bool:
    """Whether it is worth reading the settings for it."""
    return bool(
        config.getoption("sandbox_durations")
        or config.getini("sandbox_durations")
        or os.environ.get("PYTEST_SANDBOX_DURATIONS")
    )


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    item.config.stash[STATE].following = (item, nextitem)
    _expect(nextitem)
    return (yield)


def _expect(item: pytest.Item | None) -> None:
    """What a recipe item will need is prepared before its turn comes."""
    expect = getattr(item, "expect", None)
    if expect is not None:
        expect()


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[STATE].upcoming = lambda: _needs(session.items)
    if session.items and not session.config.option.collectonly:
        _expect(session.items[0])


def _needs(items: Sequence[pytest.Item]) -> Iterator[tuple[SystemRequirements, Target]]:
    """What the first recipe items need; images are planned for those together."""
    from pytest_sandbox.errors import SandboxError
    from pytest_sandbox.images.requirements import requirements_of

    found: list[Any] = [item for item in items if hasattr(item, "plan_for")]
    for item in found[:_PLANNED]:
        with suppress(SandboxError):  # it will fail, and say so, by itself
            yield requirements_of(item.plan(), item.target), item.target


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("requires_system") is None:
        return
    state = item.config.stash[STATE]
    if _FIXTURES & set(getattr(item, "fixturenames", ())):
        return
    from pytest_sandbox.hostcheck import lacking

    with explained(state.session):
        for name in required(item):
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
    for number, one in enumerate(used, 1):
        text = describe_sandbox(one)
        if (keep == "always" and call.when == "call") or (keep == "failed" and report.failed):
            text += f"\nenter it: {_kept(one)}"
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


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    if not config.getoption("sandbox"):
        return None
    state = config.stash[STATE]
    names = ", ".join(target.id for target in state.targets)
    count = "1 target" if len(state.targets) == 1 else f"{len(state.targets)} targets"
    engine = [f"runtime {state.settings.runtime}"]
    if not config.option.collectonly:  # which touches no engine
        from pytest_sandbox.reporting import describe_engine

        workers = config.pluginmanager.hasplugin("dsession")
        engine = describe_engine(state.session, workers=workers)
    return [f"sandbox: {line}" for line in (*engine, f"{count}: {names}")]


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
    shown = set(terminalreporter.reportchars.lower())
    if not shown & set("sa"):
        for line in state.board.absences():
            terminalreporter.write_line(f"sandbox: {line}")
    else:
        for nodeid, reason in state.board.unsupported:
            terminalreporter.write_line(f"UNSUPPORTED {nodeid}: {reason}")


# -- the end ---------------------------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    state = session.config.stash[STATE]
    output = getattr(session.config, "workeroutput", None)
    if state.opened is not None:
        with state.opened.clock.phase("teardown"):
            state.opened.close()
        if output is not None:
            output["sandbox_unsupported"] = state.board.unsupported
    if output is not None and state.durations is not None:
        state.durations.tell_controller(output)


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(STATE, None)
    if state is None:
        return
    spawning = sys.modules.get("pytest_sandbox.oci.supervisor.spawn")
    if spawning is not None:
        spawning.forget_ahead()
    if state.opened is not None:
        state.opened.close()
    if state.led_workers:
        state.session.sweep_workers()
