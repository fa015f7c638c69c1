"""Package instructions, and how managers are asked for what is kept."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from pytest_sandbox.images.dockerfile import dockerfile
from pytest_sandbox.images.families import load_families
from pytest_sandbox.images.installing import (
    KEEPING,
    KEPT,
    install_commands,
    layered_command,
    marked_packages,
    wants_documentation,
)
from pytest_sandbox.images.requirements import NOTHING, collect_requirements, merged
from pytest_sandbox.images.sharing import packages_of, sizes_of
from pytest_sandbox.images.spec import derive_spec
from pytest_sandbox.plans.model import PlanStep
from pytest_sandbox.recipes.model import Verify
from pytest_sandbox.targets import FAMILIES, Target


def run(script, folder, programs):
    """Run a script with `folder` in the place of what is kept, and programs of our own."""
    tools = folder / "bin"
    tools.mkdir()
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}")
        (tools / name).chmod(0o755)
    kept = folder / "kept"
    kept.mkdir()
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    script = script.replace(KEPT, str(kept))
    done = subprocess.run(
        ["sh", "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return kept


@pytest.mark.parametrize("family", FAMILIES)
def test_scripts_are_shell(family):
    keeping = KEEPING[family]
    for script in (keeping.refresh, keeping.fetch([["a", "b+c"], ["$(id)"]])):
        done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, check=False)
        assert done.returncode == 0, (script, done.stderr)
        assert "$(id)" not in script.replace("'$(id)'", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_comment_names_the_packages(family):
    (command,) = install_commands(family, ["a", "b c"])
    comment, _, instruction = command.partition("\n")
    assert marked_packages(comment) == ("a", "b c")
    assert instruction.startswith("RUN ")
    assert marked_packages("# what: else") == ()


@pytest.mark.parametrize(
    ("packages", "wanted"),
    [
        (["jq", "docker.io", "mandoc-ish", "info-beamer"], False),
        (["jq", "man-db"], True),
        (["python3-doc"], True),
        (["manpages-dev"], True),
        (["locales"], True),
        (["bash-lang"], True),
        (["glibc-langpack-de"], True),
    ],
)
def test_documentation_is_for_who_asks(packages, wanted):
    assert wants_documentation(packages) is wanted
    for family, word in (
        ("debian", "--path-exclude=/usr/share/man/*"),
        ("rhel", "tsflags=nodocs"),
        ("arch", "NoExtract = usr/share/doc/*"),
        ("suse", "rpm.install.excludedocs = yes"),
    ):
        (command,) = install_commands(family, packages)
        assert (word in command) is not wanted


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("jq --version", False),
        ("test -f /usr/share/man/man1/jq.1.gz", True),
        ("ls /usr/share/docker", False),
        ("man -w jq", True),
    ],
)
def test_a_check_that_reads_documentation_has_it_installed(command, wanted):
    step = PlanStep(action="apt_install", params={"packages": ["jq"]})
    target = Target("linux", "amd64", "debian")
    needs = collect_requirements([step], target, verify=Verify(command=command))
    assert needs.documentation is merged([needs, NOTHING]).documentation is wanted
    spec = derive_spec(needs, target, families=load_families())
    assert ("path-exclude" in dockerfile(spec)) is not wanted


APT = """
for word; do last=$word; done
case "$*" in
*--print-uris*) case $last in no-such) exit 100 ;; esac
    echo 'Reading package lists...'
    echo "'http://m.invalid/p/one_1%253a2.0-1_amd64.deb' one_1%3a2.0-1_amd64.deb 1234 SHA256:ab"
    [ $last = one ] || echo "'http://m.invalid/x' two_3+b_all.deb 99 SHA256:cd" ;;
*download*) echo "$@" >>../asked; : >two_3+b_all.deb ;;
esac
"""


def test_what_apt_resolves_is_told_and_fetched_at_once(tmp_path):
    script = KEEPING["debian"].fetch([["one"], ["no-such"], ["one", "two"]])
    kept = run(script, tmp_path, {"apt-get": APT})
    first, third = (kept / "resolved" / name for name in "02")
    assert first.read_text() == "# resolved\none_1%3a2.0-1_amd64.deb 1234 SHA256:ab\n"
    assert sizes_of(third.read_text().splitlines()) == {
        "one_1%3a2.0-1_amd64.deb": 1234, "two_3+b_all.deb": 99,
    }  # fmt: skip
    assert not (kept / "resolved" / "1").exists()
    (asked,) = (kept / "asked").read_text().splitlines()
    assert asked.split("download ")[1] == "one:amd64=1:2.0-1 two=3+b"
    assert sorted(path.name for path in (kept / "archives").iterdir()) == ["two_3+b_all.deb"]


def test_names_of_archives():
    parts = ["one_1%3a2_amd64.deb", "two_3_all.deb", "lib_1_i386.deb"]
    assert packages_of(parts, "amd64") == ("lib:i386", "one", "two")


def test_installed_in_stages_it_looks_as_if_asked_for_alone():
    command = layered_command("debian", ["jq"], ["jq", "libjq1"], documentation=False)
    assert command.endswith(" \\\n && apt-mark auto libjq1 > /dev/null")
    assert " jq libjq1 \\\n" in command
    assert "apt-mark" not in layered_command("debian", ["jq"], ["jq"], documentation=False)


@pytest.mark.skipif(shutil.which("pacman-conf") is None, reason="pacman-conf is missing")
def test_pacman_reads_the_settings(tmp_path):
    (command,) = install_commands("arch", ["jq"])
    text = command.split("printf '")[1].split("'")[0].replace("\\n", "\n")
    (tmp_path / "own").write_text("[options]\nArchitecture = auto\n[extra]\nServer = file:///x\n")
    file = tmp_path / "pacman.conf"
    file.write_text(text.replace("/etc/pacman.conf", str(tmp_path / "own")))
    done = subprocess.run(
        ["pacman-conf", "--config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NoExtract = usr/share/doc/*" in done.stdout
    assert "NoExtract = !usr/share/doc/*/copyright" in done.stdout
    assert "[extra]" in done.stdout
