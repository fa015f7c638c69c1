"""Targets: parsing, globs, detection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.targets import (
    ALL_TARGETS,
    LINUX_TARGETS,
    Target,
    arch_from_machine,
    family_from_os_release,
    host_family,
    libc_of,
    match_targets,
)

OS_RELEASE = json.loads(
    (Path(__file__).parents[1] / "data/recipes/os_release.json").read_text(encoding="utf-8")
)


def test_parse_and_show():
    target = Target.parse("linux/arm64/alpine")
    assert (target.os, target.arch, target.family, target.libc) == (
        "linux",
        "arm64",
        "alpine",
        "musl",
    )
    assert str(target) == "linux/arm64/alpine"
    assert target.id == "alpine-arm64"
    assert Target.parse("darwin/arm64").libc == ""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("linux", "is no target"),
        ("linux//debian", "is no target"),
        ("linux/amd64/debian/x", "is no target"),
        ("plan9/amd64/debian", "unknown os 'plan9'"),
        ("linux/mips/debian", "unknown architecture 'mips'"),
        ("linux/amd64/gentoo", "unknown family 'gentoo'"),
        ("linux/amd64", "unknown family ''"),
        ("darwin/arm64/debian", "has no Linux family"),
    ],
)
def test_parse_names_the_part_at_fault(text, part):
    with pytest.raises(UsageError) as wrong:
        Target.parse(text)
    assert part in wrong.value.what
    assert wrong.value.next_step


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["linux/*/alpine"], ["linux/amd64/alpine", "linux/arm64/alpine"]),
        (["alpine-arm64"], ["linux/arm64/alpine"]),
        (["suse", "suse"], ["linux/amd64/suse", "linux/arm64/suse"]),
        (["linux/arm64/rhel", "linux/amd64/rhel"], ["linux/amd64/rhel", "linux/arm64/rhel"]),
    ],
)
def test_globs(patterns, expected):
    assert [str(target) for target in match_targets(patterns)] == expected


def test_architecture_and_everything():
    assert len(match_targets(["arm64"])) == 5
    assert tuple(match_targets(["linux/*"])) == LINUX_TARGETS
    assert [str(t) for t in match_targets(["darwin/*"], ALL_TARGETS)] == [
        "darwin/amd64",
        "darwin/arm64",
    ]


def test_a_glob_that_names_nothing():
    with pytest.raises(UsageError, match="names none"):
        match_targets(["linux/*/gentoo"])
    with pytest.raises(UsageError, match="unknown family 'gentoo'"):
        match_targets(["linux/amd64/gentoo"])


@pytest.mark.parametrize("case", OS_RELEASE, ids=lambda case: case["id"])
def test_family_by_os_release(case):
    like = " ".join(case["id_like"] or [])
    text = f'NAME="x"\n# ID=no\nID={case["id"]}\nID_LIKE="{like}"\n'
    if case["error"]:
        with pytest.raises(UsageError) as wrong:
            family_from_os_release(text)
        assert repr(case["id"]) in wrong.value.what
    else:
        assert family_from_os_release(text) == case["family"]


def test_no_os_release_is_no_error(tmp_path):
    assert host_family(str(tmp_path / "none")) == ""


def test_words_of_machines_and_libc():
    assert arch_from_machine("x86_64") == "amd64"
    assert arch_from_machine("aarch64") == "arm64"
    assert arch_from_machine("riscv64") == "riscv64"
    assert libc_of("linux", "") == "glibc"
    assert libc_of("darwin", "alpine") == ""
