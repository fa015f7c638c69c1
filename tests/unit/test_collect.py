"""Collection: which files become which items. No engine, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.targets import host_arch

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
[metadata]
name = "{name}"
tags = ["colour"]

[[steps]]
action = "apt_install"
packages = ["jq"]

[[steps]]
action = "apk_install"
packages = ["jq"]

[verify]
command = "jq --version"
pattern = "jq"
"""


@pytest.fixture
def recipes(pytester: pytest.Pytester) -> Path:
    pytester.makeini("[pytest]\n")
    folder = pytester.mkdir("recipes")
    (folder / "jq.toml").write_text(GOOD.format(name="jq"))
    return folder


def ids(pytester: pytest.Pytester, *args: str) -> list[str]:
    result = pytester.runpytest("--collect-only", "-q", *args)
    return [line for line in result.outlines if "::" in line]


def test_one_item_a_target_in_a_stable_order(pytester: pytest.Pytester, recipes: Path) -> None:
    found = ids(pytester, "--sandbox", "--sandbox-target", "linux/*/*")
    assert found[0] == "recipes/jq.toml::install[debian-amd64]"
    assert len(found) == 10
    assert found[-1] == "recipes/jq.toml::install[suse-arm64]"


def test_without_the_option_recipes_are_no_tests(pytester: pytest.Pytester, recipes: Path) -> None:
    assert ids(pytester) == []


def test_a_recipe_named_on_the_command_line_is_collected_wherever_it_lies(
    pytester: pytest.Pytester, recipes: Path
) -> None:
    other = pytester.mkdir("elsewhere") / "x.toml"
    other.write_text(GOOD.format(name="x"))
    assert ids(pytester, "--sandbox", "elsewhere/x.toml", "--sandbox-target", "*/*/debian") == [
        "elsewhere/x.toml::install[debian-amd64]",
        "elsewhere/x.toml::install[debian-arm64]",
    ]


def test_a_bare_family_asks_for_this_architecture_alone(
    pytester: pytest.Pytester, recipes: Path
) -> None:
    assert ids(pytester, "--sandbox", "--sandbox-target", "debian") == [
        f"recipes/jq.toml::install[debian-{host_arch()}]"
    ]


def test_a_node_id_selects_one_item(pytester: pytest.Pytester, recipes: Path) -> None:
    wanted = "recipes/jq.toml::install[alpine-arm64]"
    assert ids(pytester, "--sandbox", "--sandbox-target", "*/*/alpine", wanted) == [wanted]


@pytest.mark.parametrize(
    ("expression", "count"), [("alpine", 2), ("arm64", 5), ("jq and debian", 2), ("colour", 10)]
)
def test_k_works_on_family_arch_name_and_tags(
    pytester: pytest.Pytester, recipes: Path, expression: str, count: int
) -> None:
    assert len(ids(pytester, "--sandbox", "--sandbox-target", "*/*/*", "-k", expression)) == count


def test_other_toml_files_are_no_recipes(pytester: pytest.Pytester, recipes: Path) -> None:
    (recipes.parent / "settings.toml").write_text("[tool]\nname = 'x'\n")
    found = ids(pytester, "--sandbox", ".", "--sandbox-target", "linux/amd64/debian")
    assert found == ["recipes/jq.toml::install[debian-amd64]"]


def test_testpaths_do_not_hide_the_recipes(pytester: pytest.Pytester, recipes: Path) -> None:
    pytester.makeini("[pytest]\ntestpaths = tests\n")
    pytester.mkdir("tests").joinpath("test_a.py").write_text("def test_a(): pass\n")
    found = ids(pytester, "--sandbox", "--sandbox-target", "linux/amd64/debian")
    assert found == ["tests/test_a.py::test_a", "recipes/jq.toml::install[debian-amd64]"]


def test_a_broken_recipe_is_one_failing_item_and_the_others_run(
    pytester: pytest.Pytester, recipes: Path
) -> None:
    (recipes / "broken.toml").write_text("[metadata]\nname = 'broken'\ntier = 'x'\n")
    result = pytester.runpytest("--sandbox", "recipes", "-k", "load")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(["FAILED recipes/broken.toml::load - resolve: recipe: *"])
    result.stdout.fnmatch_lines(["*broken.toml:3*tier*"])
    assert result.ret == 1


def test_unsupported_targets_yield_no_item_and_are_listed(
    pytester: pytest.Pytester, recipes: Path
) -> None:
    text = GOOD.format(name="glibc-only").replace("tags", 'supported_libc = ["glibc"]\ntags')
    (recipes / "glibc-only.toml").write_text(text)
    result = pytester.runpytest(
        "--sandbox", "--collect-only", "-rs", "--sandbox-target", "linux/amd64/*"
    )
    result.stdout.fnmatch_lines(["*UNSUPPORTED recipes/glibc-only.toml::install?alpine-amd64?: *"])
    assert "glibc-only.toml::install[alpine" not in str(
        [line for line in result.outlines if "UNSUPPORTED" not in line]
    )


def test_traps_are_warnings_with_file_and_line(pytester: pytest.Pytester, recipes: Path) -> None:
    text = GOOD.format(name="trap").replace(
        "[verify]",
        '[[steps]]\naction = "manual"\ntext = "x"\nwhen = { arch = ["amd64"] }\n\n[verify]',
    )
    (recipes / "trap.toml").write_text(text)
    result = pytester.runpytest_subprocess("--sandbox", "--collect-only", "-q", "recipes/trap.toml")
    result.stdout.fnmatch_lines(["*trap.toml:16: RecipeWarning: *arch*"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--sandbox-target", "linux/amd64/debain"], "*unknown family 'debain'*"),
        (["--sandbox-memory", "lots"], "*--sandbox-memory: 'lots' is no size*"),
        (["--sandbox-timeout", "-1"], "*--sandbox-timeout: '-1' is not above zero*"),
        (["--sandbox-network", "wifi"], "*--sandbox-network: unknown value 'wifi'*"),
    ],
)
def test_wrong_options_are_usage_errors(
    pytester: pytest.Pytester, recipes: Path, args: list[str], said: str
) -> None:
    result = pytester.runpytest("--sandbox", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_option_beats_environment_beats_ini(
    pytester: pytest.Pytester, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nsandbox_target = linux/amd64/alpine\n")
    assert ids(pytester, "--sandbox") == ["recipes/jq.toml::install[alpine-amd64]"]
    monkeypatch.setenv("PYTEST_SANDBOX_TARGET", "linux/amd64/suse linux/amd64/rhel")
    found = ids(pytester, "--sandbox")
    assert found == [
        "recipes/jq.toml::install[rhel-amd64]",
        "recipes/jq.toml::install[suse-amd64]",
    ]
    found = ids(pytester, "--sandbox", "--sandbox-target", "linux/arm64/arch")
    assert found == ["recipes/jq.toml::install[arch-arm64]"]


def test_native_toml_ini_keys(pytester: pytest.Pytester, recipes: Path) -> None:
    pytester.path.joinpath("tox.ini").unlink()
    pytester.makepyprojecttoml(
        "[tool.pytest]\nstrict = true\n"
        'sandbox_target = ["linux/amd64/debian"]\nsandbox_timeout = 30.0\nsandbox_pids = 50\n'
        'sandbox_memory = "1g"\nsandbox_require = true\n'
    )
    assert ids(pytester, "--sandbox") == ["recipes/jq.toml::install[debian-amd64]"]
