"""Loading: types, errors with file, line and key, files, folders, silent traps."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.errors import RecipeError, UsageError
from pytest_sandbox.recipes.load import find_recipes, load_recipe, parse_recipe, read_recipe
from tests.unit.recipes.vectors import recipe_text

STEP = '[[steps]]\naction = "setup_build_env"\n'

FULL = """
[metadata]
name = "full"
description = "Everything"
dependencies = ["zlib@1.3"]
supported_libc = []
tags = ["text"]

[version]
github_repo = "o/r"
pin = "3"

[[steps]]
action = "download_archive"
url = "https://x.example/{version}.tar.gz"
binaries = ["a", { src = "b", dest = "bin/b" }]
when = { os = ["linux", 3], arch = "amd64" }
dependencies = "patchelf"
note = "n"

[[patches]]
data = "x"

[[resources]]
name = "r"

[verify]
command = "full --version"
pattern = "{version}"
exit_code = 3
[[verify.additional]]
command = "full -h"
pattern = "usage"
"""


def test_everything_is_read():
    recipe = parse_recipe(FULL)
    assert recipe.name == "full"
    assert recipe.metadata.supported_libc == []
    assert recipe.metadata.supported_os is None
    assert recipe.version.github_repo == "o/r"
    (step,) = recipe.steps
    assert step.index == 1
    assert step.when.os == ("linux",)
    assert step.when.arch == "amd64"
    assert step.dependencies == ("patchelf",)
    assert set(step.params) == {"url", "binaries"}
    assert recipe.patches[0].data == "x"
    assert recipe.resources[0].name == "r"
    assert recipe.verify.expected_exit == 3
    assert recipe.verify.additional[0].pattern == "usage"


@pytest.mark.parametrize(
    ("text", "line", "key", "what"),
    [
        ("[metadata\n", 1, "", "not valid TOML"),
        ('a = "\n', 1, "", "not valid TOML"),
        ("metadata = 3\n", 1, "metadata", "expected a table, got a number"),
        ('[metadata]\nname = "a"\n\nbinaries = ["x", 3]\n', 4, "metadata.binaries[2]", "str"),
        ('[metadata]\nname = "../a"\n' + STEP, 2, "metadata.name", "recipe name"),
        ('[metadata]\nname = "a b"\n' + STEP, 2, "metadata.name", "recipe name"),
        (recipe_text("[steps]\n"), 5, "steps", "double brackets"),
        (recipe_text("[[steps]]\nnote = 'x'\n"), 5, "steps[1]", "action is required"),
        (recipe_text("[[steps]]\nacton = 'x'\n"), 6, "steps[1].acton", "instead of acton"),
        (
            recipe_text(STEP + '[[steps]]\naction = "chmdo"\n'),
            8,
            "steps[2].action",
            "unknown action 'chmdo'; next: write 'chmod'",
        ),
        (
            recipe_text(STEP, rest='exit_code = "1"\n'),
            10,
            "verify.exit_code",
            "expected int, got str",
        ),
        (
            recipe_text(STEP, rest="[[verify.additional]]\npattern = 3\n"),
            11,
            "verify.additional[1].pattern",
            "expected str",
        ),
        (recipe_text(STEP, rest="[patches]\n"), 10, "patches", "list of tables"),
        (
            recipe_text('[[steps]]\naction = "apt_install"\npackages = [\n  "jq",\n  "a; b",\n]\n'),
            9,
            "steps[1].packages[2]",
            "'a; b' is not a Debian package name",
        ),
        (
            recipe_text('[[steps]]\naction = "group_add"\ngroup = "a b"\n'),
            7,
            "steps[1].group",
            "group name",
        ),
    ],
)
def test_errors_say_where_and_what(text, line, key, what):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.toml")
    assert (caught.value.line, caught.value.key) == (line, key)
    assert what in str(caught.value)
    assert str(caught.value).startswith(f"resolve: recipe: r.toml:{line}: ")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe: No such file") as caught:
        load_recipe(tmp_path / "no.toml")
    assert caught.value.path == str(tmp_path / "no.toml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'[metadata]\nname = "\xe9"\n')
    with pytest.raises(RecipeError, match=r"latin\.toml:2: byte 0xe9 is not UTF-8"):
        load_recipe(latin)
    huge = tmp_path / "huge.toml"
    with huge.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(RecipeError, match="larger than 4 MiB"):
        load_recipe(huge)
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    with pytest.raises(RecipeError, match="no regular file"):
        load_recipe(pipe)


def test_deep_nesting_is_an_error_not_a_crash():
    with pytest.raises(RecipeError, match="not valid TOML"):
        parse_recipe("a = " + "[" * 20_000, "deep.toml")


def test_find_recipes(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/z.toml", "b/a.toml", "c.toml", "notes.md"):
        (tmp_path / name).write_text("", encoding="utf-8")
    found = find_recipes([tmp_path / "c.toml", tmp_path])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["c.toml", "b/a.toml", "b/z.toml"]
    with pytest.raises(UsageError, match="absent"):
        find_recipes([tmp_path / "absent"])


def test_read_recipe_brings_the_silent_traps(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        recipe_text(
            '[[steps]]\naction = "apt_install"\npackages = ["jq", 3]\n'
            'when = { arch = ["arm64"], os_family = "debian" }\n'
        )
        + '[version]\npin = "1"\n[verfy]\n',
        encoding="utf-8",
    )
    recipe, findings = read_recipe(path)
    assert recipe.name == "a"
    assert [(f.line, f.key, f.suggestion) for f in findings] == [
        (7, "steps[1].packages", ""),
        (8, "steps[1].when.os_family", "linux_family"),
        (8, "steps[1].when.arch", ""),
        (13, "version.pin", ""),
        (14, "verfy", "verify"),
    ]
    assert all(f.severity == "warning" and f.path == str(path) for f in findings)
