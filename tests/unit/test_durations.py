"""Where the time of a run goes: every moment stands somewhere, in junit and in the table."""

from __future__ import annotations

import re
import threading
import time
import xml.etree.ElementTree as ET

import pytest

from pytest_sandbox.clock import OFF, OTHER, Stopwatch
from pytest_sandbox.durations import PHASES, PREFIX, table

CONFTEST = """\
from pytest_sandbox import FakeRuntime


def pytest_sandbox_runtime(config, name):
    return FakeRuntime(results={"jq --version": "jq-1.7.1"})
"""

RECIPE = """\
[metadata]
name = "jq"

[[steps]]
action = "run_command"
command = "make install"

[verify]
command = "jq --version"
"""


@pytest.fixture
def run_dir(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A recipe and two tests, of which one uses a sandbox."""
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"PYTEST_SANDBOX_{name}", str(pytester.path / name.lower()))
    pytester.makeconftest(CONFTEST)
    (pytester.mkdir("recipes") / "jq.toml").write_text(RECIPE)
    pytester.makepyfile(
        """
        import time

        def test_one(sandbox):
            assert sandbox.run(["true"]).ok
            time.sleep(0.02)

        def test_none():
            pass
        """
    )
    return pytester


def test_time_belongs_to_the_innermost_phase() -> None:
    clock = Stopwatch()
    began = time.monotonic()
    clock.begin()
    with clock.phase("image"):
        time.sleep(0.01)
        with clock.phase("build"):
            time.sleep(0.02)
        with clock.phase("image"):
            time.sleep(0.01)
    time.sleep(0.01)
    spent = clock.finish()
    wall = time.monotonic() - began
    assert set(spent) == {"image", "build", OTHER}
    assert spent["build"] >= 0.02
    assert spent["image"] >= 0.02
    assert spent[OTHER] >= 0.01
    assert wall >= sum(spent.values()) >= wall - 0.005


def test_an_item_ends_once_and_the_run_goes_on() -> None:
    clock = Stopwatch()
    clock.begin()
    time.sleep(0.005)
    assert clock.finish()[OTHER] >= 0.005
    assert clock.finish() == {}
    with clock.phase("teardown"):
        time.sleep(0.005)
    assert clock.run["teardown"] >= 0.005


def test_other_threads_are_not_measured() -> None:
    clock = Stopwatch()

    def elsewhere() -> None:
        with clock.phase("build"):
            time.sleep(0.005)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    clock.mark()
    assert set(clock.run) == {OTHER}


def test_a_clock_that_is_off_says_nothing() -> None:
    with OFF.phase("image"):
        assert vars(OFF) == {}


def test_the_table_has_the_slowest_items_and_whose_time_it_was() -> None:
    items = {
        "a": {"acquire": 0.5, "install": 1.0, "verify": 0.5, OTHER: 0.0, "total": 2.0},
        "b": {"acquire": 0.5, "install": 2.0, OTHER: 0.5, "total": 3.0},
        "c": {"install": 0.5, "total": 0.5},
    }
    runs = [{"start": 0.25, "tests": 9.0, OTHER: 0.25}, {"collect": 1.0}]
    lines = table(items, runs, 9.0, 2)
    assert lines[0].split() == ["acquire", "install", "verify", "prove", OTHER, "total"]
    assert [line.split()[0] for line in lines[1:3]] == ["b", "a"]
    assert lines[2].split()[1:] == ["0.500", "1.000", "0.500", "-", "-", "2.000"]
    assert lines[3].split() == ["3", "items", "1.000", "3.500", "0.500", "-", "0.500", "5.500"]
    assert lines[4] == (
        "2 workers together: start 0.250, collect 1.000, tests 9.000, items 5.500, other 0.250; "
        "in all 16.000, wall time 9.000"
    )
    assert lines[5].startswith("recipes' own install and verify: 4.000; ours and pytest's: 3.000")
    assert lines[5].endswith("(43 %); wall time is 2.25 times the recipes' own")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one-process", "xdist"])
def test_phases_add_up_to_the_item(run_dir: pytest.Pytester, workers: tuple[str, ...]) -> None:
    arguments = ("--sandbox", "--sandbox-target", "linux/amd64/debian", "--sandbox-durations")
    result = run_dir.runpytest_subprocess(*arguments, "--junitxml=out.xml", *workers)
    assert result.ret == 0
    cases = {}
    for case in ET.parse("out.xml").iter("testcase"):
        found = {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
        cases[case.get("name")] = {
            name.removeprefix(PREFIX): float(text)
            for name, text in found.items()
            if name.startswith(PREFIX)
        }
    assert cases["test_none"] == {}
    for name, phases in (
        ("test_one", {"image", "acquire", "teardown"}),
        ("install[debian-amd64]", {"resolve", "acquire", "install", "verify", "teardown"}),
    ):
        spent = dict(cases[name])
        total = spent.pop("total")
        assert phases <= set(spent) <= set(PHASES)
        assert sum(spent.values()) == pytest.approx(total, abs=0.001)
    assert cases["test_one"][OTHER] >= 0.02
    result.stdout.fnmatch_lines(["*where the time went*", "*install*total", "2 items *"])
    (line,) = [line for line in result.outlines if "in all" in line]
    assert line.startswith("2 workers together: start" if workers else "run: start")
    parts = re.findall(r"(?:[a-z]+) ([0-9.]+)", line.partition(": ")[2].partition(";")[0])
    in_all = re.search(r"in all ([0-9.]+), wall time ([0-9.]+)", line)
    assert in_all is not None
    assert sum(map(float, parts)) == pytest.approx(float(in_all[1]), abs=0.01)
    if not workers:
        assert float(in_all[1]) == pytest.approx(float(in_all[2]), abs=0.01)


def test_the_slowest_are_as_many_as_durations_says(run_dir: pytest.Pytester) -> None:
    run_dir.makeini("[pytest]\nsandbox_durations = true")
    result = run_dir.runpytest("--sandbox", "--sandbox-target", "debian", "--durations=1")
    shown = [line for line in result.outlines if re.search(r"::.* \d\.\d{3} +\d\.\d{3}$", line)]
    assert len(shown) == 1
    assert any(line.startswith("2 items ") for line in result.outlines)


def test_nothing_is_shown_where_nobody_asks(run_dir: pytest.Pytester) -> None:
    result = run_dir.runpytest("--sandbox", "--sandbox-target", "debian", "--junitxml=out.xml")
    assert "where the time went" not in result.stdout.str()
    names = [one.get("name") for one in ET.parse("out.xml").iter("property")]
    assert f"{PREFIX}install" in names
    assert f"{PREFIX}total" not in names
