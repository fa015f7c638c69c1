"""The fixed scripts, run by the machine's own sh."""

from __future__ import annotations

import subprocess

import pytest

from pytest_sandbox.plans.model import Command
from pytest_sandbox.plans.script import compile_plan
from tests.unit.plans.making import plan, step


@pytest.fixture
def run(tmp_path):
    """Carry out the commands of some steps below tmp_path; `files` lie in the work folder."""

    def carry_out(steps, files, **keywords):
        here = str(tmp_path)
        statuses = []
        for program in compile_plan(plan(steps, **keywords)):
            for command in program.operations:
                assert isinstance(command, Command)
                argv = [word.replace("/workspace", here) for word in command.argv]
                cwd = command.cwd.replace("/workspace", here)
                done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
                statuses.append((program.action, done.returncode, done.stderr))
                if done.returncode:
                    return statuses
            if program.action == "prepare":
                for name, text in files.items():
                    path = tmp_path / "work/jq" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
        return statuses

    return carry_out


def test_one_file_at_a_time(run, tmp_path):
    outputs = '["x/jq", { src = "-n", dest = "bin/-n" }, { src = "a b", dest = "share/a b" }]'
    statuses = run(step("install_binaries", outputs=outputs), {"x/jq": "1", "-n": "2", "a b": "3"})
    assert [status for _, status, _ in statuses] == [0, 0, 0]
    home = tmp_path / "tsuku/tools/jq-unversioned"
    assert (home / "bin/jq").stat().st_mode & 0o777 == 0o755
    assert (home / "share/a b").stat().st_mode & 0o111 == 0
    current = tmp_path / "tsuku/tools/current"
    assert sorted(path.name for path in current.iterdir()) == ["-n", "jq"]
    assert (current / "jq").resolve() == home / "bin/jq"
    assert not (tmp_path / "work/jq").exists()


def test_a_missing_file_is_named(run):
    action, status, error = run(step("install_binaries", outputs='["jq"]'), {})[-1]
    assert (action, status) == ("install_binaries", 66)
    assert error == "jq is not there\n"


def test_the_whole_folder(run, tmp_path):
    steps = step("install_binaries", outputs='["bin/jq"]', install_mode='"directory"')
    statuses = run(steps, {"bin/jq": "1", "lib/x": "2", ".hidden": "3", "..odd": "4"})
    assert [status for _, status, _ in statuses] == [0, 0, 0]
    home = tmp_path / "tsuku/tools/jq-unversioned"
    assert sorted(path.name for path in home.iterdir()) == ["..odd", ".hidden", "bin", "lib"]
    assert (tmp_path / "tsuku/tools/current/jq").read_text() == "1"


def test_the_whole_folder_without_what_was_promised(run):
    steps = step("install_binaries", outputs='["bin/jq"]', install_mode='"directory"')
    action, status, error = run(steps, {"lib/x": "2"})[-1]
    assert (action, status, error) == ("install_binaries", 66, "bin/jq is not there\n")


def test_the_tools_own_name_is_the_fallback(run, tmp_path):
    made = "mkdir -p .install/bin && echo 1 > .install/bin/jq"
    run(step("run_command", command=f'"{made}"'), {})
    assert (tmp_path / "tsuku/tools/current/jq").read_text() == "1\n"


def test_declared_binaries_must_be_there(run):
    steps = step("run_command", command='"true"')
    action, status, error = run(steps, {}, metadata='binaries = ["bin/other"]')[-1]
    assert (action, status, error) == ("finish", 66, "bin/other was not installed\n")


def test_installing_again_replaces(run, tmp_path):
    for text in ("1", "2"):
        run(step("install_binaries", outputs='["jq"]'), {"jq": text})
    assert (tmp_path / "tsuku/tools/current/jq").read_text() == "2"


def test_group_check(run):
    assert run(step("group_add", group='"root"'), {}) == [("group_add", 0, "")]
    assert run(step("group_add", group='"roo"'), {}) == [("group_add", 1, "")]
