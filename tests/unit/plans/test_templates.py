"""Placeholders and mappings."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import PlanError, UsageError
from pytest_sandbox.plans.templates import expand, expand_params, wants_version
from pytest_sandbox.plans.versions import check_version, parse_versions
from tests.unit.plans.making import ALPINE, plan, step


def test_unknown_placeholders_stay():
    known = {"version": "1.2", "os": "linux"}
    assert expand("{os}-{version}-{base} {} {{version}}", known) == "linux-1.2-{base} {} {1.2}"


def test_lists_and_tables_are_expanded_and_other_values_kept():
    found = expand({"a": ["{os}", 1, {"b": "{os}"}], "c": True}, {"os": "linux"})
    assert found == {"a": ["linux", 1, {"b": "linux"}], "c": True}


def test_mappings_hold_for_their_step_and_pass_others_through():
    params = {
        "url": "{os}/{arch}",
        "os_mapping": {"linux": "unknown-linux-gnu"},
        "arch_mapping": {"amd64": "x86_64"},
    }
    variables = {"os": "linux", "arch": "arm64"}
    assert expand_params(params, variables) == {"url": "unknown-linux-gnu/arm64"}
    assert variables == {"os": "linux", "arch": "arm64"}


def test_a_value_is_not_expanded_twice():
    assert expand("{version}", {"version": "{os}", "os": "linux"}) == "{os}"


def test_wants_version():
    assert wants_version({"a": ["x-{version}.tar"]})
    assert wants_version("{version_tag}")
    assert not wants_version({"a": ["{os}", 1], "b": "{deps.rust.version}"})


def test_a_version_is_needed_only_where_a_template_uses_it():
    fetch = step("download", url='"https://example.invalid/{version}/x"')
    with pytest.raises(PlanError) as wrong:
        plan(fetch)
    assert wrong.value.blame == "unsupported"
    assert wrong.value.next_step == "--sandbox-version jq=VERSION"
    found = plan(fetch, versions={"jq": "1.7"})
    assert found.steps[0].url == "https://example.invalid/1.7/x"
    assert plan(step("apt_install", packages='["jq"]')).version == ""


def test_a_check_with_a_version_does_not_stop_an_installation():
    found = plan(
        step("apt_install", packages='["jq"]'), verify='command = "jq"\npattern = "{version}"'
    )
    assert found.verify.pattern == "{version}"


def test_what_is_not_supported_is_said_before_a_version_is_asked_for():
    found = plan(step("cargo_install", crate='"x-{version}"', executables='["x"]'))
    assert found.steps[0].composite == "cargo_install"


def test_version_tag_has_the_prefix():
    fetch = step("download", url='"https://example.invalid/{version_tag}/x"')
    found = plan(fetch, versions={"jq": "1.7"}, rest='[version]\ntag_prefix = "jq-"')
    assert found.steps[0].url == "https://example.invalid/jq-1.7/x"


def test_the_target_fills_in():
    fetch = step("download", url='"https://example.invalid/{os}-{arch}"')
    assert plan(fetch, target=ALPINE).steps[0].url == "https://example.invalid/linux-arm64"


@pytest.mark.parametrize("version", ["../x", "1/2", "1 2", "-1", "a..b", "1;ls"])
def test_a_version_is_a_part_of_a_path(version):
    with pytest.raises(PlanError, match="is none"):
        check_version(version, "jq")


def test_versions_from_the_command_line():
    assert parse_versions(["jq=1.7.1", "a=b+1"]) == {"jq": "1.7.1", "a": "b+1"}
    for pair in ("jq", "=1", "jq=", "jq=a b"):
        with pytest.raises(UsageError, match="NAME=VERSION"):
            parse_versions([pair])
