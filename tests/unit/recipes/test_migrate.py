"""migrate: packages where they are known, manual steps elsewhere, and the text around untouched."""

from __future__ import annotations

import tomllib

import pytest

from pytest_sandbox.errors import RecipeError
from pytest_sandbox.recipes.grammar import check_package
from pytest_sandbox.recipes.known_commands import KNOWN_COMMANDS
from pytest_sandbox.recipes.lint import lint_text
from pytest_sandbox.recipes.load import parse_recipe
from pytest_sandbox.recipes.migrate import migrate_text
from pytest_sandbox.recipes.select import steps_for
from pytest_sandbox.targets import ALL_TARGETS, MANAGERS, Target

DOCKER = """\
# The engine
[metadata]
name = "docker"
description = "Containers"

# it must be there
[[steps]]
action = "require_system"
command = "docker"   # the client
version_flag = "--version"
version_regex = "Docker version ([0-9.]+)"

[steps.install_guide]
darwin = "brew install --cask docker"
linux = "See https://docs.docker.com/engine/install/"

# the check
[verify]
command = "docker --version"
pattern = "Docker version"
"""

DOCKER_NOW = """\
# The engine
[metadata]
name = "docker"
description = "Containers"

[[steps]]
action = "brew_cask"
packages = ["docker"]

# it must be there
[[steps]]
action = "require_system"
command = "docker"   # the client
version_flag = "--version"
version_regex = "Docker version ([0-9.]+)"
packages = { apt = ["docker.io"], dnf = ["moby-engine", "docker-cli"], pacman = ["docker"], \
apk = ["docker"], zypper = ["docker"] }

# the check
[verify]
command = "docker --version"
pattern = "Docker version"
"""

HEAD = '[metadata]\nname = "a"\ndescription = "A"\n'
TAIL = '\n[verify]\ncommand = "a --version"\n'


def recipe(command, guide, rest=""):
    return f'{HEAD}[[steps]]\naction = "require_system"\ncommand = "{command}"\n{rest}{guide}{TAIL}'


def steps_of(text):
    """(action, family or os) of everything that is kept, by target, for checks of `manual`."""
    found = migrate_text(text)
    assert found.changed
    assert [str(f) for f in lint_text(found.text)] == []
    return tomllib.loads(found.text)["steps"]


def manual_texts(text, target):
    kept = steps_for(parse_recipe(migrate_text(text).text), Target.parse(target))
    return [step.params["text"] for step in kept if step.action == "manual"]


def test_the_registrys_own_example():
    found = migrate_text(DOCKER, "docker.toml")
    assert found.text == DOCKER_NOW
    assert found.comments_kept
    assert lint_text(found.text) == []
    assert not migrate_text(found.text).changed
    with pytest.raises(RecipeError, match=r"migrate docker\.toml"):
        parse_recipe(DOCKER, "docker.toml")


def test_an_unknown_command_leaves_the_guide_for_a_person():
    text = recipe("nvcc", '[steps.install_guide]\nlinux = "See NVIDIA\\nfor it"\ndarwin = "None"\n')
    manual, other, step = steps_of(text)
    assert manual == {
        "action": "manual",
        "text": "See NVIDIA\nfor it",
        "when": {"os": ["linux"]},
    }
    assert other == {"action": "manual", "text": "None", "when": {"os": ["darwin"]}}
    assert "packages" not in step


@pytest.mark.parametrize(
    ("guide", "packages"),
    [
        ('linux = "sudo apt-get install -y foo-bin"', {"apt": ["foo-bin"]}),
        ('darwin = "brew install foo"', {"brew": ["foo"]}),
        ('debian = "apt install foo"\nalpine = "apk add foo"', {"apt": ["foo"], "apk": ["foo"]}),
        (
            'arch = "sudo pacman -S foo"\nrhel = "yum install foo"',
            {"dnf": ["foo"], "pacman": ["foo"]},
        ),
    ],
)
def test_a_guide_that_is_a_command_names_packages(guide, packages):
    text = recipe("foo", f"[steps.install_guide]\n{guide}\n")
    assert steps_of(text)[-1]["packages"] == packages


def test_families_without_a_package_get_the_text():
    text = recipe(
        "foo", '[steps.install_guide]\nlinux = "apt install foo"\nfallback = "Ask somebody."\n'
    )
    assert manual_texts(text, "linux/amd64/debian") == []
    for target in ALL_TARGETS:
        if target.family != "debian":
            assert manual_texts(text, str(target)) == ["Ask somebody."]


@pytest.mark.parametrize(
    "guide",
    [
        'install_guide = "Ask"\n',
        'install_guide = { linux = "Ask", darwin = "Ask" }\n',
        'install_guide.linux = "Ask"\ninstall_guide.darwin = "Ask"  # both\n',
        '[steps.install_guide]\n"linux/amd64" = "Ask"\ndarwin = "Ask"\n',
    ],
)
def test_every_way_to_write_a_guide(guide):
    text = recipe("foo", guide)
    assert steps_of(text)[-1] == {"action": "require_system", "command": "foo"}
    assert migrate_text(text).comments_kept
    assert manual_texts(text, "linux/amd64/debian") == ["Ask"]
    assert manual_texts(text, "darwin/arm64") == ["Ask"]


def test_clauses_are_merged():
    text = recipe(
        "foo",
        'install_guide = { linux = "L", darwin = "D" }\n',
        rest='when = { os = ["linux"], libc = ["glibc"] }\n',
    )
    manual, _step = steps_of(text)
    assert manual["when"] == {"libc": ["glibc"], "os": ["linux"]}
    text = recipe(
        "foo",
        'install_guide = { linux = "L", darwin = "D" }\n',
        rest='when = { platform = ["darwin/arm64"] }\n',
    )
    manual, _step = steps_of(text)
    assert manual["when"] == {"platform": ["darwin/arm64"]}


def test_packages_that_are_there_stay():
    text = recipe("jq", 'packages = { apt = ["jq=1.6-2"] }\n[steps.install_guide]\nlinux = "Ask"\n')
    packages = steps_of(text)[-1]["packages"]
    assert packages["apt"] == ["jq=1.6-2"]
    assert packages["dnf"] == ["jq"]


def test_several_steps_comments_and_windows_lines():
    text = (
        HEAD
        + '# one\n[[steps]]\naction = "require_system"\ncommand = "git"\ninstall_guide = "x"\n'
        + '# two\n[[steps]]\naction = "chmod"\nfiles = ["a"]\n'
        + '# three\n[[steps]]\naction = "require_system"\ncommand = "nvcc"\n'
        + '[steps.install_guide]  # old\nlinux = "N"\n# after\n'
        + TAIL
    ).replace("\n", "\r\n")
    found = migrate_text(text)
    assert found.comments_kept
    assert "\n" not in found.text.replace("\r\n", "")
    for comment in ("# one", "# two", "# three", "# after"):
        assert comment in found.text
    assert [step["action"] for step in tomllib.loads(found.text)["steps"]] == [
        "require_system",
        "chmod",
        "manual",
        "require_system",
    ]


def test_text_that_cannot_be_edited_in_place_is_written_anew():
    text = (
        'steps = [{ action = "require_system", command = "jq", install_guide = "x" }]\n'
        + HEAD
        + TAIL
    )
    found = migrate_text(text)
    assert found.changed
    assert not found.comments_kept
    assert lint_text(found.text) == []


def test_nothing_to_do():
    text = recipe("jq", "")
    found = migrate_text(text)
    assert not found.changed
    assert found.text == text


@pytest.mark.parametrize("command", KNOWN_COMMANDS)
def test_known_commands_name_packages_of_every_linux_family(command):
    packages = KNOWN_COMMANDS[command]
    assert set(MANAGERS) <= set(packages)
    for manager, names in packages.items():
        assert [check_package(manager, name) for name in names] == list(names)
