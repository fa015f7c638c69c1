"""`--sandbox-durations`: where the time of a run went, for each item in junit and as a table.

With xdist each worker measures itself; the controller gathers what they tell and shows the sums.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_sandbox.clock import OTHER, Stopwatch, process_began

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

PREFIX: Final = "sandbox.seconds."
"""Begins the names of the user properties with an item's seconds: PREFIX + phase, and `total`."""

PHASES: Final = (
    "resolve", "image", "build", "engine", "acquire", "install", "verify", "prove", "teardown",
    OTHER,
)  # fmt: skip
"""The columns of an item. image: the wait for one that others build, or that is looked up."""

OWN: Final = ("install", "verify", "prove")
"""The phases in which a recipe's own steps and checks run; all others are this plugin's."""

RUN: Final = (
    "start", "collect", "resolve", "image", "build", "engine", "acquire", "tests", "teardown",
    OTHER,
)  # fmt: skip
"""The parts of a run outside of items. start: Python and pytest, until plugins are configured;
tests: items that use no sandbox. What the first item will need is prepared before it.
"""

WORKER_OUTPUT: Final = "sandbox_durations"
_SLOWEST: Final = 10


class Durations:
    """Measures this process, and shows what it and its workers measured."""

    def __init__(self, config: pytest.Config) -> None:
        self.clock = Stopwatch(process_began())
        self.clock.mark()
        self.clock.run["start"] = self.clock.run.pop(OTHER, 0.0)
        self._began = self.clock.mark() - self.clock.run["start"]
        self._config = config
        self._items: dict[str, dict[str, float]] = {}
        self._workers: list[dict[str, float]] = []

    # -- measuring -----------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        with self.clock.phase("collect"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self.clock.begin()
        try:
            return (yield)
        finally:
            self.clock.finish()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.when == "teardown":
            self._tell(item, self.clock.finish())
        return (yield)

    def _tell(self, item: pytest.Item, spent: Mapping[str, float]) -> None:
        if set(spent) <= {OTHER}:
            run = self.clock.run
            run["tests"] = run.get("tests", 0.0) + sum(spent.values())
            return
        kept = [one for one in item.user_properties if not one[0].startswith(PREFIX)]
        total = f"{sum(spent.values()):.4f}"
        kept += [(PREFIX + name, f"{spent[name]:.4f}") for name in PHASES if name in spent]
        item.user_properties[:] = [*kept, (f"{PREFIX}total", total)]

    def tell_controller(self, output: dict[str, Any]) -> None:
        """On a worker, at its end: the figures of its run, for `pytest_testnodedown`."""
        self.clock.mark()
        output[WORKER_OUTPUT] = self.clock.run

    # -- gathering -----------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        found = {
            name.removeprefix(PREFIX): float(str(seconds))
            for name, seconds in report.user_properties
            if name.startswith(PREFIX)
        }
        if "total" in found:
            self._items[report.nodeid] = found

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = getattr(node, "workeroutput", {}).get(WORKER_OUTPUT)
        if told is not None:
            self._workers.append(told)

    # -- showing -------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        wall = self.clock.mark() - self._began
        most = config.getoption("durations", None)
        most = _SLOWEST if most is None else most or len(self._items)
        terminalreporter.section("sandbox: where the time went (seconds)")
        workers = self._workers or [self.clock.run]
        for line in table(self._items, workers, wall, most):
            terminalreporter.write_line(line)


def table(
    items: Mapping[str, Mapping[str, float]],
    runs: Iterable[Mapping[str, float]],
    wall: float,
    most: int,
) -> list[str]:
    """The `most` slowest items by phase, the sums, the parts of the run, and whose time it was.

    `runs` are the parts outside of items of each process that ran items; `wall` is the time of the
    run as the user saw it.
    """
    processes = list(runs)
    sums: Counter[str] = Counter()
    for spent in items.values():
        sums.update(spent)
    columns = [name for name in PHASES if sums[name] >= 0.0005 or name in {*OWN, OTHER}]
    columns.append("total")
    slowest = sorted(items, key=lambda name: -items[name]["total"])[:most]
    count = f"{len(items)} items" if len(items) != 1 else "1 item"
    width = max(map(len, [*slowest, count]))
    lines = [f"{'':{width}}" + _row(columns)] if items else []
    for name in slowest:
        lines.append(f"{name:{width}}" + _figures(items[name], columns))
    if items:
        lines.append(f"{count:{width}}" + _figures(sums, columns))
    parts: Counter[str] = Counter()
    for one in processes:
        parts.update(one)
    words = [f"{name} {parts[name]:.3f}" for name in RUN if parts[name] >= 0.0005]
    words.insert(-1 if parts[OTHER] >= 0.0005 else len(words), f"items {sums['total']:.3f}")
    total = sum(parts.values()) + sums["total"]
    who = f"{len(processes)} workers together" if len(processes) > 1 else "run"
    lines.append(f"{who}: {', '.join(words)}; in all {total:.3f}, wall time {wall:.3f}")
    own = sum(sums[name] for name in OWN)
    lines.append(_whose(own, total - parts["tests"], wall))
    return lines


def _whose(own: float, total: float, wall: float) -> str:
    if not own:
        return "no recipe's own step or check ran"
    share = 100 * (total - own) / total
    return (
        f"recipes' own install and verify: {own:.3f}; "
        f"ours and pytest's: {total - own:.3f} ({share:.0f} %); "
        f"wall time is {wall / own:.2f} times the recipes' own"
    )


def _row(words: Iterable[str]) -> str:
    return "".join(f" {word:>8}" for word in words)


def _figures(spent: Mapping[str, float], columns: Iterable[str]) -> str:
    return _row(f"{spent[name]:.3f}" if spent.get(name) else "-" for name in columns)
