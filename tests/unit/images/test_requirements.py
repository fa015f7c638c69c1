"""Plan -> SystemRequirements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sandbox.errors import PlanError
from pytest_sandbox.images.requirements import (
    BY_HOST,
    NOTHING,
    collect_requirements,
    merged,
    requirements_of,
    says_nothing,
)
from pytest_sandbox.plans.model import PlanStep
from pytest_sandbox.recipes.vocabulary import ACTIONS
from pytest_sandbox.targets import Target
from tests.unit.images.making import DEBIAN, KEY, needs
from tests.unit.plans.making import catalogue, plan, recipe, step

DATA = Path(__file__).parents[2] / "data/images"
EXTRACT = json.loads((DATA / "packages_extract.json").read_text(encoding="utf-8"))
PROFILES = json.loads((DATA / "requirements.json").read_text(encoding="utf-8"))
ALPINE = Target.parse("linux/amd64/alpine")

HELD_BY_THE_IMAGE = {name for name, action in ACTIONS.items() if action.system}
"""Their network use is the image's build, not the sandbox's."""

NO_REASON_FOR_A_NETWORK = {"configure_make", "cmake_build"}
"""A build from source that was unpacked already reaches for nothing."""


def collect(*steps, target=DEBIAN):
    found = [PlanStep(action=one["action"], params=one.get("params", {})) for one in steps]
    return collect_requirements(found, target)


@pytest.mark.parametrize("case", EXTRACT, ids=range(len(EXTRACT)))
def test_extraction_is_the_registrys_but_sorted_and_checked(case):
    steps = case["steps"]
    if any(not isinstance(s["params"].get("packages", []), list) for s in steps):
        with pytest.raises(PlanError, match="packages: expected a list"):
            collect(*steps)
        return
    if any(s["params"].get("key_sha256") == "h" for s in steps):  # no hash: refused
        with pytest.raises(PlanError, match="64 hex digits"):
            collect(*steps)
        return
    facts = case["requirements"] or {"Packages": {}, "Repositories": None}
    found = collect(*steps)
    assert found.packages == {
        manager: tuple(sorted(set(names))) for manager, names in facts["Packages"].items()
    }


@pytest.mark.parametrize("case", PROFILES, ids=lambda case: case["action"])
def test_profiles_are_the_registrys_where_the_sandbox_itself_reaches_out(case):
    action = case["action"]
    params = {
        "packages": ["x"],
        "url": "https://example.invalid/x",
        "key_url": "https://example.invalid/k",
        "key_sha256": KEY,
        "group": "x",
        "service": "x",
        "command": "x",
        "text": "x",
    }
    found = collect({"action": action, "params": params})
    if action in HELD_BY_THE_IMAGE | BY_HOST:
        assert (found.network, found.profile) == (False, "default")
    elif action in NO_REASON_FOR_A_NETWORK:
        assert (found.network, found.profile) == (False, "build")
    else:
        assert (found.network, found.profile) == (case["network"], case["profile"])


def test_what_says_nothing_says_nothing():
    params = {"packages": ["x"], "command": "x", "text": "x", "group": "x", "service": "x"}
    quiet = [name for name in ACTIONS if says_nothing(name)]
    assert "homebrew" in quiet
    for name in quiet:
        assert collect({"action": name, "params": params}) is NOTHING
    for name in (
        set(ACTIONS)
        - set(quiet)
        - {
            "apt_repo",
            "apt_ppa",
            "dnf_repo",
            "manual",
            "require_system",
        }
    ):
        assert collect({"action": name, "params": params}) != NOTHING, name


def test_require_system_takes_only_the_targets_manager():
    packages = {"apt": ["docker.io"], "apk": ["docker"], "brew": ["docker"]}
    params = {"command": "docker", "packages": packages}
    one = {"action": "require_system", "params": params}
    assert collect(one).packages == {"apt": ("docker.io",)}
    assert collect(one, target=ALPINE).packages == {"apk": ("docker",)}
    assert collect(one).commands == ("docker",)
    suse = Target.parse("linux/amd64/suse")
    assert collect(one, target=suse).packages == {}


def test_primitives():
    primitives = [
        {"action": "apt", "packages": ["b", "a", "b"]},
        {"action": "apk", "packages": ["c"]},
        {"action": "group_add", "group": "docker"},
        {"action": "service_enable", "service": "docker"},
        {"action": "apt_ppa", "ppa": "owner/name"},
        {"action": "manual", "text": "x"},
    ]
    found = collect(
        {"action": "require_system", "params": {"command": "x", "primitives": primitives}}
    )
    assert found.packages == {"apt": ("a", "b")}
    assert (found.groups, found.services) == (("docker",), ("docker",))
    assert [one.ppa for one in found.repositories] == ["owner/name"]


def test_apt_repositories_may_carry_their_suite_in_the_url():
    params = {
        "url": "https://example.invalid/debian trixie main extra",
        "key_url": "https://example.invalid/k",
        "key_sha256": KEY.upper(),
    }
    (one,) = collect({"action": "apt_repo", "params": params}).repositories
    assert (one.url, one.suite, one.components) == (
        "https://example.invalid/debian",
        "trixie",
        ("main", "extra"),
    )
    assert one.key_sha256 == KEY


def test_dependencies_count():
    known = catalogue(recipe(step("apt_install", packages='["b"]'), name="a"))
    found = requirements_of(
        plan(
            step("apt_install", packages='["a"]'), metadata='dependencies = ["a"]', catalogue=known
        )
    )
    assert found.packages == {"apt": ("a", "b")}


def test_the_family_of_a_plan_with_packages_by_manager():
    found = plan(step("require_system", command='"jq"', packages='{ apt = ["jq"] }'))
    assert requirements_of(found).packages == {"apt": ("jq",)}
    assert requirements_of(found) == requirements_of(found, DEBIAN)


@pytest.mark.parametrize("name", ["a; rm -rf /", "$(id)", "-y", "a b", "A\n", "x-"])
def test_names_are_held_to_their_grammar_again(name):
    with pytest.raises(PlanError, match="packages"):
        collect({"action": "apt_install", "params": {"packages": [name]}})


def test_merged():
    one = needs(["a"], groups=("x",))
    two = needs(["b", "a"], network=True, profile="build", infrastructure="network")
    found = merged([one, two, NOTHING])
    assert found.packages == {"apt": ("a", "b")}
    assert (found.network, found.profile, found.infrastructure) == (True, "build", "network")
    assert found.groups == ("x",)
    assert merged([]) == NOTHING
