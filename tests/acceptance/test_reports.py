"""What a person sees of a failure, at 80 columns and in junit; how to enter what was kept."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRONG = """\
[[steps]]
action = "run_command"
command = "echo installed > /srv/thing; echo begun"

[verify]
command = "cat /srv/thing; echo $PYTEST_SECRET_TOKEN; printf '\\\\033[31mred'; exit 4"
pattern = "installed"
"""


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_failing_item_says_what_where_and_how_to_reproduce_it(
    recipe: Callable[[str, str], object],
    prove: Callable[..., pytest.RunResult],
    workers: tuple[str, ...],
) -> None:
    recipe("wrong", WRONG)
    result = prove("--junitxml=out.xml", *workers)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "verify: recipe: exit 4, expected 0: `cat /srv/thing*`; next: *",
            "  recipe: *recipes/wrong.toml",
            "  target: linux/amd64/debian",
            "  image: *:* (*",
            "  command: /bin/sh -c *",
            "  status: 4",
            "  last lines:",
            "*| installed",
            "  full log: *verify-00.log",
            "  reproduce: pytest --sandbox 'recipes/wrong.toml::install[[]debian-amd64]'*",
        ]
    )
    short = [line for line in result.outlines if line.startswith("FAILED ")]
    assert len(short) == 1
    assert len(short[0]) <= 80
    assert " - verify: recipe: exit 4" in short[0]
    # and the whole of it, wrapped, in a section of its own
    result.stdout.fnmatch_lines(["*sandbox failures*", "recipes/wrong.toml::install*"])
    assert "\033[31mred" not in result.stdout.str()
    assert "\\x1b[31mred" in result.stdout.str()
    log = re.search(r"full log: (\S+)", result.stdout.str())
    assert log is not None
    with open(log[1], encoding="utf-8") as source:  # noqa: PTH123 - a path out of a report
        assert source.read().startswith("installed\n")
    case = ET.parse("out.xml").getroot().find(".//testcase")
    assert case is not None
    facts = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
    assert ":" in facts["sandbox.image"]
    assert facts["sandbox.image.digest"].startswith("sha256:")
    assert facts["sandbox.image.hit"] == "true"
    assert facts["sandbox.exit_status"] == "4"
    assert facts["sandbox.blame"] == "recipe"
    assert float(facts["sandbox.seconds.install"]) > 0
    assert float(facts["sandbox.seconds.verify"]) > 0
    assert int(facts["sandbox.memory.peak"]) > 0
    failure = case.find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith("verify: recipe: exit 4")


def test_secrets_of_the_host_never_appear(
    recipe: Callable[[str, str], object],
    prove: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTEST_SECRET_TOKEN", "hunter2-hunter2")
    recipe("wrong", WRONG.replace("$PYTEST_SECRET_TOKEN", "hunter2-hunter2"))
    result = prove()
    result.assert_outcomes(failed=1)
    assert "hunter2" not in result.stdout.str()
    assert "[REDACTED]" in result.stdout.str()


def test_a_kept_system_can_be_entered(
    recipe: Callable[[str, str], object], prove: Callable[..., pytest.RunResult]
) -> None:
    recipe("wrong", WRONG)
    result = prove("--sandbox-keep", "failed")
    found = re.search(r"enter it: pytest-sandbox shell (\w+)", result.stdout.str())
    assert found is not None
    shell = [sys.executable, "-c", "from pytest_sandbox.cli import main; main()", "shell"]
    try:
        done = subprocess.run(
            [*shell, found[1]],
            input="cat /srv/thing; echo $TSUKU_HOME; pwd\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.split() == ["installed", "/workspace/tsuku", "/workspace"], done.stderr
        listed = subprocess.run(
            [*shell, "--list"], capture_output=True, text=True, timeout=60, check=True
        )
        assert found[1] in listed.stdout
    finally:
        subprocess.run([*shell, "--rm", found[1]], timeout=60, check=True)


RUN = '[[steps]]\naction = "run_command"\ncommand = "{}"\n'
CHECK = '\n[verify]\ncommand = "true"\n'
TRIVIAL = RUN.format("true") + CHECK


def step(action: str, rest: str) -> str:
    return f'[[steps]]\naction = "{action}"\n{rest}\n'


def test_nothing_is_proved_without_a_check(
    recipe: Callable[[str, str], Path], prove: Callable[..., pytest.RunResult]
) -> None:
    recipe("no-check", RUN.format("true"))
    recipe("no-steps", step("apk_install", 'packages = ["jq"]') + CHECK)
    recipe("later", step("cargo_install", 'crate = "x"\nexecutables = ["x"]') + CHECK)
    recipe("versionless", TRIVIAL + 'pattern = "{version}"\n')
    for name, command in (("library", "true"), ("broken-library", "false")):
        path = recipe(name, RUN.format(command))
        path.write_text(path.read_text().replace("[metadata]", '[metadata]\ntype = "library"'))
    result = prove("-rsf")
    result.assert_outcomes(skipped=4, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED*no check that could prove*",
            "SKIPPED*no step of the recipe is meant for linux/amd64/debian*",
            "SKIPPED*action cargo_install is not supported yet*",
            "SKIPPED*--sandbox-version versionless=VERSION*",
            "FAILED recipes/no-check.toml::load - resolve: recipe: *",
            "FAILED recipes/broken-library.toml::install* - install: recipe: *",
        ]
    )


def test_a_family_that_cannot_be_had_is_one_line_and_fails_when_named(
    recipe: Callable[[str, str], object], prove: Callable[..., pytest.RunResult]
) -> None:
    recipe("a", TRIVIAL)
    recipe("b", TRIVIAL)
    bases = ["--sandbox-base", "suse=localhost:9/none:1"]
    result = prove("-rs", *bases, "-k", "suse", target="")
    result.assert_outcomes(skipped=2, deselected=8)
    lines = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert len(lines) == 1
    assert "suse: image: " in lines[0]
    result = prove(*bases, target="linux/amd64/suse")
    result.assert_outcomes(failed=2)
    result.stdout.re_match_lines([r"^image: (network|host|upstream): .*localhost:9/none:1.*"])
    result = prove("--sandbox-require", *bases, "-k", "suse", target="")
    result.assert_outcomes(failed=2, deselected=8)


def test_offline_forbids_pull_and_bootstrap(
    recipe: Callable[[str, str], object],
    prove: Callable[..., pytest.RunResult],
) -> None:
    recipe("a", step("apt_install", 'packages = ["sl"]') + CHECK)
    result = prove("--sandbox-offline", "--sandbox-base", "debian=localhost:9/none:1")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"^image: host: .*offline.*"])


def test_two_workers_and_two_runs_build_an_image_once(
    recipe: Callable[[str, str], object],
    prove: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    engine: object,
) -> None:
    # A need that nobody else has: the group's name is in the image key.
    group = f"g{pytester.path.stat().st_ino}"
    for name in "abcd":
        recipe(
            name,
            f'[[steps]]\naction = "apt_install"\npackages = ["hello"]\n'
            f'[[steps]]\naction = "group_add"\ngroup = "{group}"\n\n'
            '[verify]\ncommand = "hello"\npattern = "Hello"\n',
        )
    command = [
        sys.executable, "-m", "pytest", "--sandbox", "--sandbox-target", "linux/amd64/debian",
        "-p", "no:cacheprovider", "-n", "2", "-q",
    ]  # fmt: skip
    runs = [
        subprocess.Popen(
            command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=240)[0] for run in runs]
    assert all("4 passed" in output for output in outputs), outputs
    assert sum(output.count("building tsuku/sandbox-cache:") for output in outputs) == 1, outputs
    result = prove("-v")
    result.assert_outcomes(passed=4)
    assert "building" not in result.stderr.str()


def test_a_plan_of_another_tool_is_run_as_it_stands(
    pytester: pytest.Pytester, prove: Callable[..., pytest.RunResult]
) -> None:
    pytester.path.joinpath("thing.json").write_text(
        '{"format_version": 5, "tool": "thing", "version": "1.0", '
        '"platform": {"os": "linux", "arch": "amd64"}, "deterministic": false, '
        '"steps": [{"action": "run_command", "params": {"command": "echo 1.0 > /srv/v"}, '
        '"evaluable": false, "deterministic": false}], '
        '"verify": {"command": "cat /srv/v", "pattern": "{version}"}}'
    )
    prove("thing.json").assert_outcomes(passed=1)
    pytester.path.joinpath("thing.json").write_text('{"format_version": 99}')
    result = prove("thing.json")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"^resolve: recipe: .*thing\.json: format_version 99 .*"])
