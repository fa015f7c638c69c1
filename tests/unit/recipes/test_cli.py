"""`pytest-sandbox lint` and `migrate` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.recipes.test_migrate import DOCKER, DOCKER_NOW
from tests.unit.recipes.vectors import recipe_text

GOOD = recipe_text('[[steps]]\naction = "setup_build_env"\n')
DOUBTFUL = recipe_text('[[steps]]\naction = "setup_build_env"\nwhen = { arch = ["arm64"] }\n')
WRONG = recipe_text('[[steps]]\naction = "apt_install"\n')


def call(*args, cwd):
    code = "from pytest_sandbox.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("text", "options", "status", "line"),
    [
        (GOOD, (), 0, ""),
        (DOUBTFUL, (), 0, "r.toml:7: warning: steps[1].when.arch: "),
        (DOUBTFUL, ("--strict",), 1, "r.toml:7: warning: "),
        (WRONG, (), 1, "r.toml:5: error: steps[1]: apt_install needs packages"),
        ("[", (), 1, "r.toml:1: error: not valid TOML"),
    ],
)
def test_lint(tmp_path, text, options, status, line):
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    result = call("lint", "r.toml", *options, cwd=tmp_path)
    assert result.returncode == status
    assert result.stdout.startswith(line)
    assert bool(result.stdout) == bool(line)
    assert result.stderr.startswith("1 recipe: ")


def test_lint_of_folders_as_json(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "r.toml").write_text(DOUBTFUL, encoding="utf-8")
    (tmp_path / "b.toml").write_text(WRONG, encoding="utf-8")
    result = call("lint", "--json", ".", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == ""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["path"], one["line"], one["severity"]) for one in found] == [
        ("a/r.toml", 7, "warning"),
        ("b.toml", 5, "error"),
    ]


@pytest.mark.parametrize("verb", ["lint", "migrate"])
def test_a_missing_file_is_a_wrong_call(tmp_path, verb):
    result = call(verb, "absent.toml", cwd=tmp_path)
    assert result.returncode == 2
    assert "absent.toml: no such file" in result.stderr


def test_migrate_shows_a_diff_and_writes_when_told(tmp_path):
    path = tmp_path / "docker.toml"
    path.write_text(DOCKER, encoding="utf-8")
    path.chmod(0o640)
    (tmp_path / "good.toml").write_text(GOOD, encoding="utf-8")
    shown = call("migrate", "docker.toml", "good.toml", cwd=tmp_path)
    assert shown.returncode == 0
    assert '+packages = { apt = ["docker.io"]' in shown.stdout
    assert "-[steps.install_guide]" in shown.stdout
    assert "good.toml: nothing to migrate" in shown.stdout
    assert path.read_text(encoding="utf-8") == DOCKER
    written = call("migrate", "--write", ".", cwd=tmp_path)
    assert written.returncode == 0
    assert path.read_text(encoding="utf-8") == DOCKER_NOW
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docker.toml", "good.toml"]
    assert call("lint", "--strict", ".", cwd=tmp_path).returncode == 0


def test_migrate_says_what_it_cannot_mend(tmp_path):
    (tmp_path / "bad.toml").write_text("[", encoding="utf-8")
    (tmp_path / "r.toml").write_text(
        DOCKER.replace('command = "docker --version"', 'mode = "functional"'), encoding="utf-8"
    )
    result = call("migrate", ".", cwd=tmp_path)
    assert result.returncode == 1
    assert "bad.toml:1: not valid TOML" in result.stderr
    assert "r.toml:" in result.stderr
    assert "verify.command" in result.stderr
