"""Whole pytest runs as a user starts them: a process of its own, the machine's own engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from xml.etree import ElementTree

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", "--color=no")
OWN = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_VERSION")
"""Variables that belong to the run that these tests are part of."""


@dataclass(frozen=True)
class Case:
    """One item of a junit report."""

    name: str
    outcome: str
    message: str
    text: str
    properties: dict[str, str]

    def told(self):
        """What must not depend on where it ran: outcome, phase, blame and what happened."""
        phase, blame, *_ = [*self.message.split(": "), "", ""]
        kept = ("sandbox.blame", "sandbox.exit_status", "sandbox.image")
        return {
            "outcome": self.outcome,
            "phase": phase if self.outcome == "failed" else "",
            "blame": blame if self.outcome == "failed" else "",
            # Engines count the steps of a build in their own ways.
            "message": re.sub(r"(step \d+)/\d+", r"\1", self.message),
            **{name: self.properties.get(name) for name in kept},
        }


@dataclass(frozen=True)
class Run:
    """What a run did: its exit status, what it printed, its items by name (recipe and target)."""

    status: int
    output: str
    cases: dict[str, Case]

    def outcomes(self):
        """Name -> outcome."""
        return {name: case.outcome for name, case in self.cases.items()}

    def told(self):
        """Name -> all that a report says of an item, but for times and the runtime."""
        return {name: case.told() for name, case in self.cases.items()}


def run_pytest(folder, *arguments, env=None, timeout=900):
    """Run `pytest ARGUMENTS` in `folder` and read its junit report."""
    report = folder / "report.xml"
    environ = {key: text for key, text in os.environ.items() if not key.startswith(OWN)}
    environ.update(env or {})
    done = subprocess.run(
        [*PYTEST, f"--junitxml={report}", *map(str, arguments)],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
        text=True,
        errors="replace",
    )
    cases = {}
    if report.exists():
        for element in ElementTree.parse(report).iter("testcase"):
            case = _case(element)
            cases[case.name] = case
    return Run(done.returncode, done.stdout, cases)


def _case(element):
    outcome, message, text = "passed", "", ""
    for kind, word in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        found = element.find(kind)
        if found is not None:
            outcome, message, text = word, found.get("message", ""), found.text or ""
    recipe = element.get("classname", "").rsplit(".", 1)[0].rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    properties = {one.get("name", ""): one.get("value", "") for one in element.iter("property")}
    recipe = properties.get("sandbox.recipe", recipe)
    name = element.get("name", "")
    return Case(f"{recipe}::{name}", outcome, message, text, properties)
