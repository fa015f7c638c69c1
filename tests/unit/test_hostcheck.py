"""`requires_system` on a test without a sandbox: what this machine lacks, and how it gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.hostcheck import lacking
from pytest_sandbox.recipes.load import parse_recipe
from pytest_sandbox.targets import Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEBIAN = Target("linux", "amd64", "debian")
RHEL = Target("linux", "amd64", "rhel")
MAC = Target("darwin", "arm64")

VERSION = 'version_flag = "--version"\nversion_regex = "tool ([0-9.]+)"\nmin_version = "2.10"\n'
VERIFY = '\n[verify]\ncommand = "tool"\n'
PACKAGES = 'packages = { apt = ["tool", "tool-data"], dnf = ["tool"], brew = ["tool"] }\n'
DOCKER = """\
primitives = [
  { action = "apt_repo", url = "https://example.org/debian", suite = "trixie", \
components = ["main"], key_url = "https://example.org/key", key_sha256 = "%s" },
  { action = "apt", packages = ["tool-ce"] },
  { action = "dnf", packages = ["tool-ee"] },
  { action = "group_add", group = "tool" },
  { action = "manual", text = "Get Tool Desktop\\nfrom its makers" },
]
""" % ("a" * 64)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """PATH is one folder; the stub is the command `tool` there, with this shell text."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(text: str, interpreter: str = "/bin/sh") -> None:
        path = folder / "tool"
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)

    return write


def recipe(body: str, after: str = ""):
    text = '[metadata]\nname = "tool-recipe"\n\n[[steps]]\naction = "require_system"\n'
    return parse_recipe(f'{text}command = "tool"\n{body}{after}{VERIFY}')


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("target", "command"),
    [
        (DEBIAN, "apt-get install tool tool-data"),
        (RHEL, "dnf install tool"),
        (MAC, "brew install tool"),
    ],
)
def test_a_missing_command_with_the_family_s_own_install_command(target, command):
    assert lacking(recipe(PACKAGES), target) == (
        f"tool-recipe: command 'tool' is missing; install it: {command}"
    )


@pytest.mark.usefixtures("stub")
def test_a_family_without_packages_has_no_cure():
    arch = Target("linux", "amd64", "arch")
    assert lacking(recipe(PACKAGES), arch) == "tool-recipe: command 'tool' is missing"


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("target", "cure"),
    [
        (DEBIAN, "install it: apt-get install tool-ce (from https://example.org/debian)"),
        (RHEL, "install it: dnf install tool-ee"),
        (MAC, "Get Tool Desktop from its makers"),
        (Target("linux", "amd64"), "Get Tool Desktop from its makers"),
    ],
    ids=str,
)
def test_primitives_give_the_install_command_or_the_manual_text(target, cure):
    assert lacking(recipe(DOCKER), target) == f"tool-recipe: command 'tool' is missing; {cure}"


@pytest.mark.usefixtures("stub")
def test_a_manual_step_of_the_recipe_is_the_last_resort():
    step = '\n[[steps]]\naction = "manual"\ntext = "Ask the administrator"\n'
    assert lacking(recipe("", step), DEBIAN).endswith("is missing; Ask the administrator")


def test_a_version_that_is_too_old(stub):
    stub('echo "tool 2.9.1"')
    assert lacking(recipe(VERSION + PACKAGES), DEBIAN) == (
        "tool-recipe: tool 2.9.1 found, 2.10 needed; install it: apt-get install tool tool-data"
    )


@pytest.mark.parametrize("text", ['echo "tool 2.10"', 'echo "tool 3.0" >&2'])
def test_a_version_that_is_new_enough_on_either_stream(stub, text):
    stub(text)
    assert lacking(recipe(VERSION + PACKAGES), DEBIAN) == ""


@pytest.mark.parametrize("text", ['echo "another 9.9"', 'echo "tool 2.10"; exit 3', "exit 0"])
def test_output_without_the_version_is_no_version(stub, text):
    stub(text)
    assert lacking(recipe(VERSION), DEBIAN) == "tool-recipe: `tool --version` tells no version"


def test_the_version_flag_is_the_recipe_s(stub):
    stub('[ "$1" = -v ] && echo "tool 4"')
    body = VERSION.replace("--version", "-v")
    assert lacking(recipe(body), DEBIAN) == ""
    assert "tells no version" in lacking(recipe(VERSION), DEBIAN)


def test_without_a_least_version_it_is_enough_that_the_command_is_there(stub):
    stub("exit 1")
    assert lacking(recipe(PACKAGES), DEBIAN) == ""


def test_a_command_that_cannot_be_started(stub):
    stub("", interpreter="/nowhere/sh")
    assert "`tool --version` failed: " in lacking(recipe(VERSION), DEBIAN)


def test_a_plain_require_command_step(stub):
    text = '[metadata]\nname = "x"\n[[steps]]\naction = "require_command"\ncommand = "tool"\n'
    text += VERIFY
    assert lacking(parse_recipe(text), DEBIAN) == "x: command 'tool' is missing"
    stub("exit 0")
    assert lacking(parse_recipe(text), DEBIAN) == ""


@pytest.mark.usefixtures("stub")
def test_a_test_without_a_sandbox_is_skipped_with_the_reason(pytester: pytest.Pytester):
    pytester.makeini("[pytest]\n")
    pytester.mkdir("recipes").joinpath("tool-recipe.toml").write_text(
        '[metadata]\nname = "tool-recipe"\n[[steps]]\naction = "require_system"\n'
        f'command = "tool"\n{DOCKER}{VERIFY}'
    )
    pytester.makepyfile(
        "import pytest\n\n@pytest.mark.requires_system('tool-recipe')\ndef test_it():\n    pass\n"
    )
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * tool-recipe: command 'tool' is missing*"])
