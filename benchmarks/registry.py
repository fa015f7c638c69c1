"""Proving the shipped recipes, beside the registry's own way of doing it today.

The registry's way is one `docker run` a recipe through docker's command line: the arguments, mounts
and environment of its sandbox, and a script that asks for the packages, runs the check and leaves
its output and status in files, which are then compared on the host. Before it, its tool asks which
engine there is (`docker info`) and whether the image is there (`docker image inspect`), for every
recipe; that counts in whole runs only. The tool itself is not run: this is the least that its way
can cost.
"""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.contest import Contest, duration, environment, interleave

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_sandbox.plans.model import Plan

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TARGET = "linux/{arch}/debian"
MEMORY, CPUS, PIDS = "4g", 4, 500  # what the registry gives to a recipe with system packages
OURS, ON_DOCKER, WAY = "pytest --sandbox", "pytest --sandbox on Docker", "the registry's way"
NEVER = "\\u2400 nothing prints this"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Subject:
    """A recipe that is green on Debian here: its plan, and the image that our run used."""

    name: str
    path: Path
    image: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Case:
    """One item of a run of ours, from its junit file. `seconds` is setup, call and teardown."""

    name: str
    seconds: float
    passed: bool
    image: str
    phases: Mapping[str, float]


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Two contests over the same rounds: the time of an item, and of whole runs."""
    docker = shutil.which("docker")
    if docker is None:
        sys.exit("registry: its way needs docker's command line on PATH")
    with tempfile.TemporaryDirectory(prefix="bench-registry-") as temp:
        yield from _contests(Path(temp), docker, given.rounds or 5)


def _contests(temp: Path, docker: str, rounds: int) -> Iterator[Contest]:
    ours, theirs = Ours(temp / "oci", "oci"), Ours(temp / "docker", "docker")
    subjects, others = theirs.choose()  # their way needs images in docker's store
    registry = Registry(temp, docker, theirs.endpoint)
    control = ours.control(subjects)
    items: dict[str, list[list[Case]]] = {OURS: [], ON_DOCKER: []}
    runs: list[list[float]] = []
    around: list[float] = []

    def our_run(name: str, of: Ours) -> Callable[[], float]:
        def turn() -> float:
            began = time.perf_counter()
            items[name].append(of.run([subject.path for subject in subjects], expect=0))
            return time.perf_counter() - began

        return turn

    def their_run() -> float:
        began = time.perf_counter()
        runs.append([])
        for subject in subjects:
            registry.look(subject)
            runs[-1].append(registry.prove(subject))
        around.append(time.perf_counter() - began - sum(runs[-1]))
        return sum(runs[-1]) + around[-1]

    turns = {OURS: our_run(OURS, ours), ON_DOCKER: our_run(ON_DOCKER, theirs), WAY: their_run}
    seconds = interleave(turns, rounds)
    for found in (*items.values(), runs, around):
        del found[0]  # the warm-up round
    samples = {
        name: [case.seconds for cases in found for case in cases] for name, found in items.items()
    }
    samples["one docker run a recipe"] = [seconds for run in runs for seconds in run]
    each = Contest(f"registry: one recipe ({len(subjects)} recipes, warm images)", samples)
    for name in items:
        each.bar(f"a recipe, {name}, against the registry's way", name, list(samples)[-1], 1.0)
    each.notes += _by_recipe(subjects, items[OURS], runs)
    each.notes += [f"{name}: left out: not green here" for name in others]
    each.notes.append(control)
    yield each
    whole = {**seconds, "of that, docker run alone": [sum(run) for run in runs]}
    run = Contest(f"registry: a whole run of {len(subjects)} recipes", whole)
    for name in items:
        run.bar(f"a whole run, {name}, against the registry's way", name, WAY, 1.0)
    yield run


def _by_recipe(
    subjects: Sequence[Subject], items: list[list[Case]], runs: list[list[float]]
) -> list[str]:
    lines = []
    for number, subject in enumerate(subjects):
        mine = statistics.median(cases[number].seconds for cases in items)
        theirs = statistics.median(run[number] for run in runs)
        names = items[0][number].phases
        phases = ", ".join(
            f"{name} {duration(statistics.median(c[number].phases.get(name, 0.0) for c in items))}"
            for name in names
        )
        lines.append(
            f"  {subject.name:12} {duration(mine):>9} against {duration(theirs):>9}   ({phases})"
        )
    return lines


class Ours:
    """Runs of `pytest --sandbox` on one runtime, in processes of their own."""

    def __init__(self, temp: Path, name: str) -> None:
        from pytest_sandbox.runtimes.detect import find_runtime

        self.runtime = name
        runtime = find_runtime(name, os.environ)
        try:
            info = runtime.info()
        finally:
            runtime.close()
        self.endpoint, self.target = info.endpoint, TARGET.format(arch=info.arches[0])
        self.temp = temp
        temp.mkdir()
        (temp / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        self.env = environment(temp)

    def run(self, paths: Sequence[Path], *, expect: int) -> list[Case]:
        """One whole run; its items in order. Another exit status ends the benchmark."""
        junit = self.temp / "junit.xml"
        argv = [sys.executable, "-m", "pytest", "--sandbox", "--sandbox-target", self.target]
        argv += [f"--sandbox-runtime={self.runtime}"]
        argv += ["--sandbox-require", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
        argv += [
            f"--rootdir={self.temp}",
            "-c",
            str(self.temp / "pytest.ini"),
            f"--junitxml={junit}",
        ]
        done = subprocess.run(
            [*argv, *map(str, paths)],
            cwd=self.temp,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != expect:
            sys.exit(f"registry: pytest exited with {done.returncode}:\n{done.stdout[-3000:]}")
        return [_case(element) for element in ET.parse(junit).iter("testcase")]

    def choose(self) -> tuple[list[Subject], list[str]]:
        """The shipped recipes that are green here, and the names of the others. Builds images."""
        from pytest_sandbox.plans.catalogue import Catalogue
        from pytest_sandbox.plans.resolve import resolve
        from pytest_sandbox.recipes.load import load_recipe
        from pytest_sandbox.targets import Target

        paths = sorted(RECIPES.glob("*.toml"))
        green = {case.name: case for case in self.run(paths, expect=0) if case.passed}
        subjects, others = [], []
        for path in paths:
            recipe = load_recipe(path)
            plan = resolve(recipe, Target.parse(self.target), catalogue=Catalogue((RECIPES,)))
            if recipe.name in green:
                subjects.append(Subject(recipe.name, path, green[recipe.name].image, plan))
            else:
                others.append(recipe.name)
        if not subjects:
            sys.exit("registry: no shipped recipe is green here")
        return subjects, others

    def control(self, subjects: Sequence[Subject]) -> str:
        """The same recipes with a pattern that nothing prints: each must fail, or ours proves
        nothing.
        """
        folder = self.temp / "control"
        folder.mkdir()
        paths = []
        for subject in subjects:
            text = subject.path.read_text(encoding="utf-8").replace(
                "[verify]\n", f'[verify]\npatterns = ["{NEVER}"]\n', 1
            )
            lines = text.splitlines()
            at = lines.index("[verify]")
            kept = [
                line
                for number, line in enumerate(lines)
                if not (number > at and line.startswith("pattern = ") and at + 5 > number)
            ]
            paths.append(folder / subject.path.name)
            paths[-1].write_text("\n".join(kept) + "\n", encoding="utf-8")
        failed = sum(not case.passed for case in self.run(paths, expect=1))
        if failed != len(subjects):
            sys.exit(f"registry: with a wrong pattern {len(subjects) - failed} recipes still pass")
        return f"control: with a pattern that nothing prints, {failed} of {len(subjects)} fail"


def _case(element: ET.Element) -> Case:
    found = {entry.get("name", ""): entry.get("value", "") for entry in element.iter("property")}
    return Case(
        name=found.get("sandbox.recipe", ""),
        seconds=float(element.get("time", "nan")),
        passed=not any(element.find(word) is not None for word in ("failure", "error", "skipped")),
        image=found.get("sandbox.image", ""),
        phases={
            name.rpartition(".")[2]: float(value)
            for name, value in found.items()
            if name.startswith("sandbox.seconds.")
        },
    )


class Registry:
    """One container a recipe, as the registry's sandbox command starts it."""

    def __init__(self, temp: Path, docker: str, endpoint: str) -> None:
        self.temp = temp
        self.docker = docker
        self.env = {**os.environ, "DOCKER_HOST": endpoint}
        self.cpus = min(CPUS, os.cpu_count() or 1)

    def look(self, subject: Subject) -> None:
        """Which engine is there, and is the image? A missing one ends the benchmark."""
        words = ["info", "--format", "{{.SecurityOptions}}"], ["image", "inspect", subject.image]
        for argv in words:
            subprocess.run([self.docker, *argv], env=self.env, capture_output=True, check=True)

    def prove(self, subject: Subject) -> float:
        """Seconds from writing the plan to the verdict; a red verdict ends the benchmark."""
        from pytest_sandbox.plans.serialize import plan_to_json

        verify = subject.plan.verify
        assert verify is not None
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.temp) as folder:
            work = Path(folder)
            (work / "plan.json").write_text(plan_to_json(subject.plan), encoding="utf-8")
            (work / "sandbox.sh").write_text(script(subject.plan), encoding="utf-8")
            (work / "output").mkdir()
            (work / "cache").mkdir()
            done = subprocess.run(
                self.command(work, subject.image),
                env=self.env,
                capture_output=True,
                text=True,
                check=False,
            )
            wanted = [(verify.literals(), verify.expected_exit)]
            wanted += [((extra.pattern,), 0) for extra in verify.additional]
            red = done.returncode != 0
            for number, (patterns, status) in enumerate(wanted):
                said = (work / "output" / f"{number}-output").read_text(errors="replace")
                code = int((work / "output" / f"{number}-exit").read_text())
                red = red or code != status or not all(text in said for text in patterns)
            took = time.perf_counter() - began
        if red:
            sys.exit(f"registry: {subject.name} is red its way:\n{done.stdout}{done.stderr}")
        return took

    def command(self, work: Path, image: str) -> list[str]:
        """The registry's arguments, in its order."""
        mounts = {
            "plan.json": "/workspace/plan.json:ro",
            "sandbox.sh": "/workspace/sandbox.sh:ro",
            "cache": "/workspace/tsuku/cache/downloads:ro",
            "output": "/workspace/output",
        }
        env = {"TSUKU_SANDBOX": "1", "TSUKU_HOME": "/workspace/tsuku", "HOME": "/workspace"}
        env |= {"DEBIAN_FRONTEND": "noninteractive", "PATH": PATH}
        argv = [self.docker, "run", "--rm", "--network=host", "--ipc=none", f"--memory={MEMORY}"]
        argv += [f"--cpus={self.cpus}", f"--pids-limit={PIDS}"]
        for name, place in mounts.items():
            argv += ["-v", f"{work / name}:{place}"]
        for name, value in env.items():
            argv += ["-e", f"{name}={value}"]
        argv += ["-w", "/workspace", "--label", "io.tsuku.sandbox=true", image]
        return [*argv, "/bin/sh", "/workspace/sandbox.sh"]


def script(plan: Plan) -> str:
    """The registry's script; where its tool would carry out the plan, packages are asked for."""
    from pytest_sandbox.images.requirements import requirements_of

    packages = requirements_of(plan).packages.get("apt", ())
    verify = plan.verify
    assert verify is not None
    commands = [verify.command, *(extra.command for extra in verify.additional)]
    lines = ["set -e"]
    lines.append(
        '[ -d "$TSUKU_HOME/tools" ] || mkdir -p "$TSUKU_HOME/tools/current" "$TSUKU_HOME/bin"'
    )
    lines.append('PATH="$TSUKU_HOME/tools/current:$TSUKU_HOME/bin:$PATH"')
    lines.append(f"dpkg-query -W {shlex.join(packages)} >/dev/null")
    lines += ["set +e", 'PATH="$TSUKU_HOME/bin:$TSUKU_HOME/tools/current:$PATH"']
    for number, command in enumerate(commands):
        output = f"/workspace/output/{number}"
        lines.append(f"{{ {command}\n}} >{output}-output 2>&1; echo $? >{output}-exit")
    return "\n".join([*lines, "exit 0", ""])


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("registry",)))
