"""Whole runs of `pytest --sandbox`: the wall time of the process beside what the recipes themselves
took, which the run's own junit says. Everything is in the cache; as root an ordinary user's run is
measured too.

The shipped recipes on a warm image look at packages that are there, for some 30 ms each: most of
such a run is Python and pytest. So a run of pytest with as many empty tests takes its turns too,
and the same is measured with recipes that work for half a second.
"""

from __future__ import annotations

import os
import pwd
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import Bar, Contest, environment, interleave, run_process

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

LIMIT = 1.3
SHIPPED = Path(__file__).resolve().parents[1] / "recipes"
RUN, OWN, BARE = "pytest --sandbox", "the recipes' own install and verify", "pytest, empty tests"
_OWN_PHASES = ("install", "verify", "prove")
_FIRST = 1800.0
"""Seconds for the first run, which may have to make a base and images."""
_WORKS = """\
[metadata]
name = "works-{number}"

[[steps]]
action = "run_command"
command = "sleep 0.3; mkdir -p /opt/works; echo {number} >/opt/works/number"

[verify]
command = "sleep 0.2; cat /opt/works/number"
pattern = "{number}"
"""


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """The shipped recipes, as this user and as an ordinary one, and recipes that take a while."""
    rounds = given.rounds or 10
    with tempfile.TemporaryDirectory(prefix="bench-whole-") as temp:
        Path(temp).chmod(0o755)
        here = Runs(Path(temp) / "self")
        yield here.contest("whole: the shipped recipes", here.shipped(), rounds)
        yield here.contest("whole: recipes that work for half a second", here.working(), rounds)
        if os.geteuid() == 0:
            user = os.environ.get("PYTEST_SANDBOX_TEST_USER") or "tester"
            title = "whole: the shipped recipes, as an ordinary user"
            try:
                account = pwd.getpwnam(user)
            except KeyError:
                bar = Bar(title, float("nan"), LIMIT)
                yield Contest(title, {}, [bar], skipped={RUN: f"there is no user {user}"})
                return
            there = Runs(Path(temp) / "user", account)
            yield there.contest(title, there.shipped(), rounds)


class Runs:
    """Runs of pytest in a folder, as another user if one is given."""

    def __init__(self, folder: Path, account: pwd.struct_passwd | None = None) -> None:
        self._folder = folder
        self._account = account
        self._before: list[str] = []
        folder.mkdir()
        self._env = environment(folder) | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if account is not None:
            site = folder / "site"
            ignored = shutil.ignore_patterns("*.pyc")
            shutil.copytree(SHIPPED.parent / "pytest_sandbox", site / "pytest_sandbox",
                            ignore=ignored)  # fmt: skip
            self._before = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}",
                            "--init-groups"]  # fmt: skip
            kept = {name: text for name, text in self._env.items() if not name.startswith("XDG_")}
            for name in ("PYTEST_SANDBOX_DATA", "PYTEST_SANDBOX_CACHE"):
                kept.pop(name, None)
            kept |= {"HOME": account.pw_dir, "PYTHONPATH": str(site), "TMPDIR": str(folder)}
            self._env = kept

    def shipped(self) -> Path:
        """A project with the shipped recipes."""
        return self._project("shipped", {one.name: one.read_text() for one in _shipped()})

    def working(self) -> Path:
        """A project with recipes that take a while."""
        texts = {f"works-{n}.toml": _WORKS.format(number=n) for n in range(6)}
        return self._project("working", texts)

    def _project(self, name: str, recipes: dict[str, str]) -> Path:
        project = self._folder / name
        (project / "recipes").mkdir(parents=True)
        (project / "bare").mkdir()
        (project / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        for number, (file, text) in enumerate(recipes.items()):
            (project / "recipes" / file).write_text(text, encoding="utf-8")
            test = project / "bare" / f"test_{number}.py"
            test.write_text("def test_nothing():\n    pass\n", encoding="utf-8")
        if self._account is not None:
            for path in (self._folder, project, *self._folder.rglob("*")):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        return project

    def contest(self, title: str, project: Path, rounds: int) -> Contest:
        """Runs of the project's recipes and of its empty tests, in turns."""
        own: list[float] = []

        def whole(seconds: float = 600.0) -> float:
            took = self._pytest(project, "-p", "pytest_sandbox.plugin", "--sandbox",
                                "--sandbox-runtime=oci", "--sandbox-target=debian",
                                "--junitxml=out.xml", "recipes", seconds=seconds)  # fmt: skip
            own.append(own_seconds(project / "out.xml"))
            return took

        whole(_FIRST)
        turns = {RUN: whole, BARE: lambda: self._pytest(project, "bare")}
        samples = interleave(turns, rounds, warmup=1)
        samples = {RUN: samples[RUN], OWN: own[-rounds:], BARE: samples[BARE]}
        contest = Contest(title, samples)
        each = list(zip(*(samples[name] for name in (RUN, OWN, BARE)), strict=True))
        wall = statistics.median(run / mine for run, mine, _ in each)
        above = statistics.median((run - bare) / mine for run, mine, bare in each)
        contest.bars.append(Bar("wall time against the recipes' own time", wall, LIMIT))
        contest.bars.append(Bar("the same without what empty tests take", above, LIMIT))
        return contest

    def _pytest(self, project: Path, *words: str, seconds: float = 600.0) -> float:
        argv = [*self._before, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
        return run_process(argv, cwd=project, env=self._env, expect={0}, timeout=seconds)


def own_seconds(report: Path) -> float:
    """What a run's recipes took themselves, by its junit report."""
    wanted = {f"sandbox.seconds.{phase}" for phase in _OWN_PHASES}
    return sum(
        float(one.get("value", "0"))
        for one in ElementTree.parse(report).iter("property")
        if one.get("name") in wanted
    )


def _shipped() -> list[Path]:
    return sorted(SHIPPED.glob("*.toml"))


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("whole",)))
