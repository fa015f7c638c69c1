"""The recipes of recipes/: clean, collected for every family, and proved on a clean Debian."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_sandbox.recipes.lint import lint_file
from pytest_sandbox.recipes.load import load_recipe
from pytest_sandbox.recipes.select import steps_for, unsupported_reason
from pytest_sandbox.targets import FAMILIES, Target, host_arch
from tests.acceptance.running import run_pytest

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.toml"))
BY_HAND = {"cuda"}
"""Recipes that no package manager can install: skipped with their guidance."""


def test_there_are_recipes():
    names = {path.stem for path in RECIPES}
    assert names >= {"docker", "jq", "git", "make", "build-tools", "python3", "ripgrep", "cuda"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_lints_clean(path):
    assert [str(finding) for finding in lint_file(path)] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("family", FAMILIES)
def test_says_something_for_every_family(path, family):
    recipe = load_recipe(path)
    target = Target("linux", "amd64", family)
    assert recipe.name == path.stem
    assert unsupported_reason(recipe, target) == ""
    assert steps_for(recipe, target)
    assert recipe.verify is not None
    assert recipe.verify.command


def test_every_recipe_yields_an_item_for_every_family(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "recipes")
    # No engine is there, and none is needed.
    run = run_pytest(
        tmp_path,
        "--sandbox",
        "--collect-only",
        "-q",
        "recipes",
        env={"DOCKER_HOST": "unix:///nonexistent/engine.sock"},
    )
    assert run.status == 0, run.output
    items = [line for line in run.output.splitlines() if "::install[" in line]
    assert len(items) == len(RECIPES) * len(FAMILIES)


def test_main_job_on_debian_is_the_same_on_each_runtime(tmp_path, each_runtime):
    shutil.copytree(FOLDER, tmp_path / "recipes")
    runs = {}
    for name in each_runtime:
        arguments = ("--sandbox", f"--sandbox-runtime={name}", "--sandbox-target=debian")
        runs[name] = run_pytest(tmp_path, *arguments, "--sandbox-durations", "recipes")
        _check_main_job(runs[name])
    first, *others = (run.told() for run in runs.values())
    for other in others:
        assert other == first


def _check_main_job(run):
    target = f"debian-{host_arch()}"
    assert run.status == 0, run.output
    wanted = {
        f"{path.stem}::install[{target}]": "skipped" if path.stem in BY_HAND else "passed"
        for path in RECIPES
    }
    assert run.outcomes() == wanted
    cuda = run.cases[f"cuda::install[{target}]"]
    assert "command 'nvcc' is missing" in cuda.message
    assert "Install the CUDA toolkit" in cuda.message
    docker = run.cases[f"docker::install[{target}]"].properties
    assert docker["sandbox.exit_status"] == "0"
    assert docker["sandbox.image"].startswith("tsuku/sandbox-cache:")
    for name, case in run.cases.items():
        spent = {
            key.rpartition(".")[2]: float(text)
            for key, text in case.properties.items()
            if key.startswith("sandbox.seconds.")
        }
        total = spent.pop("total")
        assert sum(spent.values()) == pytest.approx(total, abs=0.002), name
        assert spent["install"] > 0
        assert ("verify" in spent) == (case.outcome == "passed")
    assert "sandbox: where the time went" in run.output
