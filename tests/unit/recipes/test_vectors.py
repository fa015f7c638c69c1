"""The registry's records hold: matching, load errors, support, versions, names, actions."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import RecipeError, UsageError
from pytest_sandbox.recipes.grammar import (
    GrammarError,
    check_command,
    check_group,
    check_service,
)
from pytest_sandbox.recipes.lint import lint_text
from pytest_sandbox.recipes.load import parse_recipe
from pytest_sandbox.recipes.preflight import preflight
from pytest_sandbox.recipes.select import exclusion, platforms, steps_for
from pytest_sandbox.recipes.versions import at_least
from pytest_sandbox.recipes.vocabulary import ACTIONS
from pytest_sandbox.targets import family_of
from tests.unit.recipes.vectors import recipe_text, recorded_targets, vectors

TARGETS = recorded_targets()


@pytest.mark.parametrize("record", vectors("when"), ids=lambda r: f"{r['action']} {r['when']}")
def test_when(record):
    text = recipe_text(f'[[steps]]\naction = "{record["action"]}"\nwhen = {record["when"]}\n')
    if "load_error" in record:
        with pytest.raises(RecipeError) as caught:
            parse_recipe(text, "a.toml")
        assert caught.value.key == "steps[1].when"
        assert caught.value.line == 7
        return
    recipe = parse_recipe(text)
    kept = [key for key, target in TARGETS.items() if steps_for(recipe, target)]
    assert sorted(kept) == sorted(record["matches"])


# the key that our error names, by the registry's text
KEYS = {
    "metadata.name is required": "",
    "at least one step is required": "",
    "verify.command is required": "verify.command",
    "unknown action": "steps[1].action",
    "conflict": "steps[1].when",
    'only valid with os="linux"': "steps[1].when",
    "metadata.supported_libc": "metadata.supported_libc",
    "metadata.tier": "metadata.tier",
    "action is required": "steps[1].action",
    'last key "steps"': "steps",
}


@pytest.mark.parametrize("record", vectors("load_errors"), ids=lambda r: r["error"][-60:] or "ok")
def test_load_errors(record):
    if not record["error"]:
        assert parse_recipe(record["toml"]).name == "a"
        return
    with pytest.raises(RecipeError) as caught:
        parse_recipe(record["toml"], "a.toml")
    expected = [key for part, key in KEYS.items() if part in record["error"]]
    assert expected == [caught.value.key]
    assert caught.value.next_step


@pytest.mark.parametrize("record", vectors("supports"), ids=lambda r: r["metadata"] or "default")
def test_supports(record):
    text = recipe_text('[[steps]]\naction = "setup_build_env"\n', metadata=record["metadata"])
    metadata = parse_recipe(text).metadata
    every = [
        *(("linux", arch, libc) for arch in ("amd64", "arm64") for libc in ("glibc", "musl")),
        ("linux", "amd64", ""),
        *(("darwin", arch, "") for arch in ("amd64", "arm64")),
    ]
    allowed = ["/".join(one) for one in every if not exclusion(metadata, *one)]
    assert allowed == record["supported"]
    assert list(platforms(metadata)) == (record["platforms"] or [])
    findings = [f for f in lint_text(text) if f.key.startswith("metadata")]
    assert [f.severity for f in findings if f.severity == "error"] == ["error"] * bool(
        record["error"]
    )
    warned = [f for f in findings if f.severity == "warning"]
    assert len(warned) == len(record["warnings"])


@pytest.mark.parametrize("record", vectors("os_release"), ids=lambda r: r["id"])
def test_os_release(record):
    if record["error"]:
        with pytest.raises(UsageError, match=record["id"]):
            family_of(record["id"], record["id_like"] or ())
    else:
        assert family_of(record["id"], record["id_like"] or ()) == record["family"]


@pytest.mark.parametrize(
    "record", vectors("min_version"), ids=lambda r: f"{r['detected']}>={r['minimum']}"
)
def test_min_version(record):
    assert at_least(record["detected"], record["minimum"]) is record["ok"]


@pytest.mark.parametrize(
    ("detected", "minimum", "ok"),
    [
        ("1", "1.0", False),
        ("3.0-rc1", "3.0", True),
        ("1.a", "1.b", False),
        ("v2.1", "2.0", True),
        ("10", "9", True),
    ],
)
def test_min_version_rules(detected, minimum, ok):
    assert at_least(detected, minimum) is ok


# ours are stricter: a leading dash would be read as an option by the command that gets the name
STRICTER = {("-x", "command"), ("-x", "service")}


@pytest.mark.parametrize("record", vectors("names"), ids=lambda r: repr(r["name"]))
@pytest.mark.parametrize(
    ("kind", "check"),
    [("command", check_command), ("group", check_group), ("service", check_service)],
)
def test_names(record, kind, check):
    name = record["name"]
    if record[kind] and (name, kind) not in STRICTER:
        assert check(name) == name
    else:
        with pytest.raises(GrammarError):
            check(name)


@pytest.mark.parametrize(
    "record", vectors("preflight"), ids=lambda r: f"{r['action']} {r['params']}"
)
def test_preflight(record):
    found = list(preflight(record["action"], record["params"], ("steps", 0)))
    assert len(found) == len(record["errors"] or [])
    for remark, text in zip(found, record["errors"] or [], strict=True):
        quoted = [word for word in ACTIONS[record["action"]].params if f"'{word}'" in text]
        assert any(word in remark.message for word in quoted)


@pytest.mark.parametrize("record", vectors("implicit"), ids=lambda r: r["action"])
def test_built_in_platform(record):
    action = ACTIONS[record["action"]]
    assert action.system is record["system_action"]
    assert action.os == record.get("os", "")
    assert action.family == record.get("linux_family", "")
    assert bool(action.manager) is record.get("externally_managed", False)


def test_action_table():
    recorded = {record.pop("name"): record for record in vectors("actions")}
    assert recorded == {
        action.name: {
            "requires_network": action.network,
            "decomposable": action.composite,
            "primitive": action.primitive,
            "deterministic": action.deterministic,
            "default_phase": action.phase,
            "system_action": action.system,
        }
        for action in ACTIONS.values()
    }
