"""inspect, plan and spec, as a user calls them."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
from click.testing import CliRunner

from pytest_sandbox.cli import inspect, plan, spec
from pytest_sandbox.errors import UsageError
from pytest_sandbox.images.name import PREFIX
from pytest_sandbox.targets import FAMILIES, host_arch

JQ = """
[metadata]
name = "jq"
supported_libc = ["glibc"]
dependencies = ["oniguruma", "nowhere"]
[[steps]]
action = "apt_install"
packages = ["jq", "jq"]
[[steps]]
action = "run_command"
command = "true"
when = { os = ["darwin"] }
[verify]
command = "jq --version"
"""
ONIGURUMA = """
[metadata]
name = "oniguruma"
type = "library"
[[steps]]
action = "apt_install"
packages = ["libonig5"]
"""
RUNS = """
[metadata]
name = "runs"
[[steps]]
action = "run_command"
command = "true"
[verify]
command = "true"
"""


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A project with three recipes, as the current folder; no settings, no extra certificates."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name, text in (("jq", JQ), ("oniguruma", ONIGURUMA), ("runs", RUNS)):
        (folder / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "data"))
    # By the module that the verbs get: runs of pytester in this process leave two of a name.
    certificates = import_module("pytest_sandbox.provision.certificates")
    monkeypatch.setattr(certificates, "extra_certificates", lambda: ())
    return folder


def call(command, *args, status=0):
    done = CliRunner().invoke(command, args, catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == status, done.output
    return done.stdout


def lines(*args, status=0):
    out = call(inspect.command, "--json", *args, status=status)
    return [json.loads(line) for line in out.splitlines()]


def test_a_bare_family_is_of_this_machine(recipes):
    path = str(recipes / "runs.toml")
    arch = host_arch()
    assert [line["target"] for line in lines(path, "--target=debian")] == [f"linux/{arch}/debian"]
    assert [line["target"] for line in lines(path, "--target=linux/*/debian")] == [
        "linux/amd64/debian",
        "linux/arm64/debian",
    ]
    wide = [line["target"] for line in lines(path, "--target=arm64", "--target= suse ")]
    assert set(wide) == {
        *(f"linux/arm64/{family}" for family in FAMILIES),
        "darwin/arm64",
        f"linux/{arch}/suse",
    }


def test_one_line_for_every_recipe_and_target(recipes):
    found = lines(str(recipes))
    assert len(found) == 30
    assert [line["target"] for line in found[:5]] == [
        f"linux/amd64/{family}" for family in ("debian", "rhel", "arch", "alpine", "suse")
    ]
    assert list(found[0]) == [
        "path",
        "name",
        "target",
        "supported",
        "reason",
        "steps",
        "packages",
        "repositories",
        "base_image",
        "image",
        "network",
        "limits",
        "dependencies",
        "missing_dependencies",
        "note",
    ]


def test_a_target_without_a_base_image_is_supported_and_noted(recipes):
    path = str(recipes / "runs.toml")
    found = {line["target"]: line for line in lines(path)}
    arm = found["linux/arm64/arch"]
    assert (arm["supported"], arm["reason"], arm["steps"]) == (True, "", ["run_command"])
    assert arm["base_image"] is None
    assert arm["image"] is None
    assert arm["note"] == (
        "arch has no base image for arm64: docker.io/library/archlinux:base is for amd64"
    )
    assert [target for target, line in found.items() if line["note"]] == ["linux/arm64/arch"]
    assert arm["packages"] == found["linux/amd64/arch"]["packages"]
    (own,) = lines(path, "--target=linux/arm64/arch", "--base=arch=example.org/arch:arm")
    assert (own["base_image"], own["note"]) == ("example.org/arch:arm", "")


def test_spec_has_none_for_a_target_without_a_base_image(recipes):
    done = CliRunner().invoke(
        spec.command, [str(recipes / "runs.toml"), "--target=arch-arm64"], standalone_mode=False
    )
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        "pytest-sandbox: image: unsupported: arch has no base image for arm64: "
    )


def test_what_a_line_says(recipes):
    path = str(recipes / "jq.toml")
    debian, alpine = lines(path, "--target=linux/amd64/debian", "--target=linux/amd64/alpine")
    assert debian["path"] == path
    assert debian["steps"] == ["apt_install"]
    assert debian["packages"] == {"apt": ["jq", "libonig5"]}
    assert debian["image"].startswith(f"{PREFIX}:")
    assert debian["base_image"].startswith("docker.io/library/debian:trixie-slim@sha256:")
    assert debian["dependencies"] == ["oniguruma"]
    assert debian["missing_dependencies"] == ["nowhere"]
    assert debian["network"] == "none"
    assert debian["limits"] == {
        "profile": "default",
        "memory": 2 << 30,
        "cpus": 2.0,
        "pids": 100,
        "timeout": 120.0,
    }
    assert alpine["supported"] is False
    assert "glibc" not in alpine["reason"]
    assert "musl" in alpine["reason"]
    assert alpine["image"] is None


def test_a_command_of_the_recipe_has_a_network_and_the_big_profile(recipes):
    (line,) = lines(str(recipes / "runs.toml"), "--target=linux/amd64/suse")
    assert (line["network"], line["limits"]["profile"], line["image"]) == ("bridge", "build", None)


def test_dependencies_are_looked_up_where_one_says(recipes, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "nowhere.toml").write_text(ONIGURUMA.replace("oniguruma", "nowhere"))
    path = str(recipes / "jq.toml")
    (line,) = lines(path, "--target=debian-amd64", f"--recipes={elsewhere}")
    assert line["dependencies"] == ["nowhere", "oniguruma"]


def test_settings_of_the_project_and_the_environment_count(recipes, tmp_path, monkeypatch):
    path = str(recipes / "oniguruma.toml")
    (before,) = lines(path, "--target=debian-amd64")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest]\nsandbox_image_prefix = "mine/cache"\nsandbox_memory = "1g"\n'
    )
    monkeypatch.setenv("PYTEST_SANDBOX_MEMORY", "512m")
    (after,) = lines(path, "--target=debian-amd64")
    assert after["image"] == before["image"].replace(PREFIX, "mine/cache")
    assert after["limits"]["memory"] == 512 << 20
    (tmp_path / "pytest.ini").write_text("[pytest]\nsandbox_image_prefix = other/cache\n")
    (other,) = lines(path, "--target=debian-amd64", "--base=debian=debian:12")
    assert other["image"].startswith("other/cache:")
    assert other["base_image"] == "debian:12"
    assert other["image"].partition(":")[2] != before["image"].partition(":")[2]


def test_a_broken_recipe_is_a_line(recipes):
    (recipes / "broken.toml").write_text('[metadata]\nname = "b"\n\n[[steps]]\naction = 1\n')
    found = lines(str(recipes), "--target=debian-amd64", status=1)
    assert len(found) == 4
    assert found[0]["path"] == str(recipes / "broken.toml")
    assert (found[0]["line"], found[0]["key"]) == (5, "steps[1].action")
    assert found[0]["error"]


def test_needs_that_fit_no_family_are_a_line(recipes):
    bad = '[[steps]]\naction = "apt_install"\npackages = ["python{version}"]\n'
    (recipes / "runs.toml").write_text(RUNS.replace("[verify]", f"{bad}[verify]"))
    (line,) = lines(str(recipes / "runs.toml"), "--target=debian-amd64", status=1)
    assert (line["name"], line["target"]) == ("runs", "linux/amd64/debian")
    assert "placeholder" in line["error"]
    (line,) = lines(
        str(recipes / "runs.toml"), "--target=debian-amd64", "--version=runs=3.13", status=0
    )
    assert line["packages"] == {"apt": ["python3.13"]}


def test_the_table(recipes):
    out = call(inspect.command, str(recipes), "--target=linux/amd64/*")
    assert "unsupported: metadata.supported_libc" in " ".join(out.replace("│", " ").split())
    assert "jq libonig5" in out


def test_wrong_calls(recipes):
    for args, what in (
        (("nope.toml",), "nope.toml: no such file"),
        ((str(recipes), "--target=gentoo"), "'gentoo' names none"),
        ((str(recipes), "--version=x"), "is no NAME=VERSION"),
        ((str(recipes), "--base=gentoo=x"), "unknown family 'gentoo'"),
    ):
        with pytest.raises(UsageError) as wrong:
            call(inspect.command, *args)
        assert what in wrong.value.what


def test_plan(recipes):
    document = json.loads(call(plan.command, str(recipes / "jq.toml"), "--target=debian-amd64"))
    assert document["format_version"] == 5
    assert [part["tool"] for part in document["dependencies"]] == ["oniguruma"]
    call(plan.command, str(recipes / "jq.toml"), "--target=alpine-amd64", status=1)


def test_spec(recipes):
    path = str(recipes / "jq.toml")
    out = call(spec.command, path, "--target=debian-amd64")
    (line,) = lines(path, "--target=debian-amd64")
    first, second, *_ = out.splitlines()
    assert first == f"# jq on linux/amd64/debian: {line['image']}"
    assert second.startswith("FROM docker.io/library/debian")
    document = json.loads(call(spec.command, path, "--target=debian-amd64", "--json"))
    assert document["image"] == line["image"]
    assert document["dockerfile"] == out.partition("\n")[2]
    plain = call(spec.command, str(recipes / "runs.toml"), "--target=suse-amd64")
    assert plain.splitlines()[1:] == [line for line in plain.splitlines()[1:] if "FROM" in line]
