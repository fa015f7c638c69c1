"""Plans as JSON."""

from __future__ import annotations

import json

import pytest

from pytest_sandbox.errors import PlanError
from pytest_sandbox.plans.script import compile_plan
from pytest_sandbox.plans.serialize import plan_from_json, plan_to_json
from tests.unit.plans.making import SHA, catalogue, plan, recipe, step

FOREIGN = {
    "format_version": 4,
    "storage_version": 1,
    "tool": "libyaml",
    "version": "0.2.5",
    "platform": {"os": "linux", "arch": "amd64", "linux_family": "alpine"},
    "generated_at": "2026-01-01T00:00:00Z",
    "recipe_source": "registry",
    "deterministic": False,
    "dependencies": None,
    "steps": [
        {
            "action": "download_file",
            "params": {"url": "https://example.invalid/a.tar.gz", "dest": "a.tar.gz"},
            "evaluable": True,
            "deterministic": True,
            "url": "https://example.invalid/a.tar.gz",
            "checksum": SHA,
            "size": 12,
        },
        {"action": "apk_install", "params": {"packages": ["yaml-dev"]}, "evaluable": False},
    ],
    "verify": {"command": "true", "exit_code": 0},
    "recipe_type": "library",
}


def test_keys_in_the_formats_order():
    known = catalogue(recipe(step("manual", text='"x"'), name="a"))
    found = plan(
        step("download_file", url='"https://example.invalid/x"', checksum=f'"{SHA}"'),
        metadata='dependencies = ["a"]\nbinaries = ["bin/jq"]\ntype = "tool"',
        verify='command = "jq"\npattern = "x"\nexit_code = 1',
        catalogue=known,
    )
    document = json.loads(plan_to_json(found))
    assert list(document) == [
        "format_version",
        "tool",
        "version",
        "platform",
        "deterministic",
        "dependencies",
        "steps",
        "verify",
        "recipe_type",
        "binaries",
    ]
    assert list(document["steps"][0]) == [
        "action",
        "params",
        "evaluable",
        "deterministic",
        "url",
        "checksum",
    ]
    assert list(document["dependencies"][0]) == ["tool", "version", "steps", "verify"]
    assert document["format_version"] == 5
    assert document["verify"] == {"command": "jq", "pattern": "x", "exit_code": 1}
    assert plan_to_json(found).startswith('{\n  "format_version": 5,\n')


def test_what_was_written_reads_back():
    text = plan_to_json(plan(step("apt_install", packages='["jq"]')))
    assert plan_to_json(plan_from_json(text)) == text


def test_a_plan_of_another_tool_loads_and_compiles():
    found = plan_from_json(json.dumps(FOREIGN))
    assert found.platform.linux_family == "alpine"
    actions = [program.action for program in compile_plan(found)]
    assert actions == ["prepare", "download_file", "apk_install", "finish"]
    assert json.loads(plan_to_json(found))["format_version"] == 5


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is no JSON"),
        ("[]", "expected an object"),
        ('{"tool": "x"}', "format_version None cannot be read"),
        ('{"format_version": 1}', "format_version 1 cannot be read"),
        ('{"format_version": 6}', "format_version 6 cannot be read"),
        ('{"format_version": 5}', "missing required field `tool`"),
        (
            '{"format_version": 5, "tool": 1, "platform": {"os": "linux", "arch": "amd64"}}',
            "$.tool",
        ),
    ],
)
def test_errors_name_the_file_and_what_is_wrong(text, what):
    with pytest.raises(PlanError) as wrong:
        plan_from_json(text, "plan.json")
    assert wrong.value.what.startswith("plan.json")
    assert what in wrong.value.what


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"platform": {"os": "darwin", "arch": "arm64"}}, "for darwin"),
        ({"steps": [{"action": "teleport"}]}, "unknown action 'teleport'"),
        ({"steps": [{"action": "download", "params": {}}]}, "composite action download"),
        ({"steps": [{"action": "github_archive"}]}, "composite action github_archive"),
        ({"steps": [{"action": "npm_exec"}]}, "action npm_exec is not supported yet"),
        ({"tool": "../x"}, "is no name"),
        ({"version": "1/../.."}, "version '1/../..'"),
        (
            {
                "steps": [
                    {"action": "download_file", "params": {"url": "https://example.invalid/x"}}
                ]
            },
            "checksum: a download_file needs one",
        ),
    ],
)
def test_plans_that_cannot_be_carried_out(change, what):
    found = plan_from_json(json.dumps({**FOREIGN, **change}))
    with pytest.raises(PlanError) as wrong:
        compile_plan(found)
    assert what in wrong.value.what


def test_what_is_wrong_in_a_dependency_counts_too():
    bad = {"tool": "a", "version": "1", "steps": [{"action": "teleport", "params": {}}]}
    with pytest.raises(PlanError, match="teleport"):
        compile_plan(plan_from_json(json.dumps({**FOREIGN, "dependencies": [bad]})))
