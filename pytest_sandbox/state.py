"""What one pytest process knows of its run; made on first use, kept in config.stash."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_sandbox.demand import Demand
    from pytest_sandbox.durations import Durations
    from pytest_sandbox.images.requirements import SystemRequirements
    from pytest_sandbox.pool import Ahead
    from pytest_sandbox.reporting import Board
    from pytest_sandbox.runtimes.base import Runtime
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.session import RunSession
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.targets import Target


class State:
    """What one pytest process knows; kept in config.stash."""

    def __init__(self, config: pytest.Config, run: str) -> None:
        self.config = config
        self.run = run
        self.led_workers = False
        self.durations: Durations | None = None
        """What measures the run, where somebody asked."""
        self.following: tuple[pytest.Item, pytest.Item | None] | None = None
        """The item that runs, and the one after it."""
        self.upcoming: Callable[[], Iterable[tuple[SystemRequirements, Target]]] = tuple
        """What the collected items need, once they are."""
        self._demand: Demand | None = None
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
                # A conftest or plugin that gives runtimes knows names that we do not.
                others = bool(self.config.hook.pytest_sandbox_runtime.get_hookimpls())
                self._settings = read_settings(option, ini, os.environ, any_runtime=others)
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
            from pytest_sandbox.clock import OFF
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
                has_header=bool(config.getoption("sandbox", False)),
                log_root=self._log_root,
                workers=self._workers,
                upcoming=self._needs_to_come,
                clock=self.durations.clock if self.durations else OFF,
            )
        return self._session

    def _needs_to_come(self) -> Iterable[tuple[SystemRequirements, Target]]:
        return self.upcoming()

    @property
    def _workers(self) -> int:
        """How many processes share the tests of this run (pytest-xdist)."""
        given: dict[str, Any] = getattr(self.config, "workerinput", {})
        return int(given.get("workercount", 1))

    def ahead(self, item: pytest.Item, *, plain: bool) -> Ahead | None:
        """What comes after this request of an item for a sandbox (see Demand); None where nothing
        is started ahead.
        """
        if not self.settings.pool:
            return None
        if self._demand is None:
            from pytest_sandbox.demand import Demand

            self._demand = Demand(item.session.items, self._workers)
        running, following = self.following or (item, item)
        return self._demand.after(item, following if running is item else item, plain=plain)

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
        text = f"sandbox: {self.session.mask(line)}"
        plugins = self.config.pluginmanager
        capture = plugins.getplugin("capturemanager")
        terminal: Any = plugins.getplugin("terminalreporter")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if terminal is not None and not hasattr(self.config, "workerinput"):
                terminal.ensure_newline()
                terminal.write_line(text)
            else:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()


STATE = pytest.StashKey[State]()
SANDBOXES = pytest.StashKey[list["Sandbox"]]()
"""The sandboxes that a test has used so far, for its report."""
