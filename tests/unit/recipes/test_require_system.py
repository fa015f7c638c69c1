"""require_system: what it may say, and what it comes to on a target."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import RecipeError
from pytest_sandbox.recipes.load import parse_recipe
from pytest_sandbox.recipes.require_system import read_require_system
from pytest_sandbox.recipes.select import steps_for
from pytest_sandbox.targets import ALL_TARGETS, Target
from tests.unit.recipes.vectors import recipe_text

DEBIAN = Target.parse("linux/amd64/debian")


def step(rest):
    return f'[[steps]]\naction = "require_system"\ncommand = "docker"\n{rest}\n'


def read(rest):
    return read_require_system(parse_recipe(recipe_text(step(rest))).steps[0])


def test_packages():
    found = read(
        'version_flag = "--version"\nversion_regex = "([0-9.]+)"\nmin_version = "20.10"\n'
        'packages = { apt = ["docker.io"], apk = ["docker"], brew = ["docker"] }'
    )
    assert (found.command, found.version_flag, found.min_version) == (
        "docker",
        "--version",
        "20.10",
    )
    assert not found.check_only
    actions = [
        (target.family or target.os, one.action, one.params["packages"])
        for target in ALL_TARGETS
        if target.arch == "amd64"
        for one in found.actions_for(target)
    ]
    assert actions == [
        ("debian", "apt_install", ["docker.io"]),
        ("alpine", "apk_install", ["docker"]),
        ("darwin", "brew_install", ["docker"]),
    ]


def test_primitives():
    found = read(
        'primitives = [\n  { action = "apt", packages = ["x"] },\n'
        '  { action = "dnf", packages = ["y"] },\n'
        '  { action = "group_add", group = "docker" },\n'
        '  { action = "manual", text = "Log in again." },\n]'
    )
    assert [one.action for one in found.actions_for(DEBIAN)] == [
        "apt_install",
        "group_add",
        "manual",
    ]
    assert found.guidance == "Log in again."


def test_a_check_only():
    found = read("")
    assert found.check_only
    assert found.actions_for(DEBIAN) == ()


def test_it_has_no_platform_of_its_own():
    recipe = parse_recipe(recipe_text(step("")))
    assert all(len(steps_for(recipe, target)) == 1 for target in ALL_TARGETS)


@pytest.mark.parametrize(
    ("rest", "line", "key", "what"),
    [
        ('packages = { apt = ["x"] }\nprimitives = []', 9, "primitives", "exclude each other"),
        ('[steps.install_guide]\nlinux = "x"', 8, "install_guide", "migrate r.toml"),
        ('packages = ["x"]', 8, "packages", "expected a table"),
        ('packages = { apt = ["x;y"] }', 8, "packages.apt[1]", "Debian package name"),
        ('primitives = "x"', 8, "primitives", "expected a list"),
        ('primitives = [\n"x"]', 9, "primitives[1]", "expected a table"),
        ("primitives = [\n{ x = 1 }]", 9, "primitives[1]", "action is required"),
        ('primitives = [{ action = "atp" }]', 8, "primitives[1].action", "write 'apt'"),
        ('primitives = [{ action = "run_command" }]', 8, "primitives[1].action", "unknown"),
        (
            'primitives = [{ action = "group_add", group = "a b" }]',
            8,
            "primitives[1].group",
            "group name",
        ),
        ('version_regex = "("', 8, "version_regex", "regular expression"),
    ],
)
def test_errors(rest, line, key, what):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe_text(step(rest)), "r.toml")
    assert (caught.value.line, caught.value.key) == (line, f"steps[1].{key}")
    assert what in str(caught.value)


def test_the_reader_raises_recipe_errors_too():
    recipe = parse_recipe(recipe_text(step("")))
    recipe.steps[0].params["install_guide"] = "x"
    with pytest.raises(RecipeError, match=r"next: run: pytest-sandbox migrate d\.toml"):
        read_require_system(recipe.steps[0], "d.toml")
