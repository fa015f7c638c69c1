"""Recipe -> Plan: filter, expansion, dependencies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sandbox.errors import PlanError
from pytest_sandbox.plans.catalogue import Catalogue
from pytest_sandbox.plans.composites import COMPOSITES, expand_composite
from pytest_sandbox.plans.dependencies import dependency_tree, direct_dependencies
from pytest_sandbox.plans.resolve import resolve
from pytest_sandbox.recipes.vocabulary import ACTIONS
from pytest_sandbox.targets import Target
from tests.unit.plans.making import ALPINE, DEBIAN, catalogue, plan, recipe, step

FACTS = json.loads(
    (Path(__file__).parents[2] / "data/plans/composites.json").read_text(encoding="utf-8")
)
DARWIN = Target.parse("darwin/arm64")

_PARAMS = {
    "url": "https://example.invalid/x.tar.gz",
    "repo": "a/b",
    "asset_pattern": "x.tar.gz",
    "binaries": ["x"],
    "binary": "x",
    "formula": "x",
    "data": "--- a",
}


@pytest.mark.parametrize("action", sorted(FACTS["composite_expansion"]))
def test_composites_become_the_registrys_primitives(action):
    expected = FACTS["composite_expansion"][action]
    params = dict(_PARAMS)
    if action == "apply_patch":
        params.pop("url")
    found = [name for name, _ in expand_composite(action, params, recipe(_any()), "1.0")]
    assert found == [name.rstrip("?") for name in expected]


def test_every_composite_of_the_vocabulary_is_expanded():
    assert {name for name, action in ACTIONS.items() if action.composite} == COMPOSITES


def test_an_archive_without_binaries_has_no_chmod():
    params = {"url": "https://example.invalid/x.tar.xz", "install_mode": "directory"}
    found = expand_composite("download_archive", params, recipe(_any()), "1")
    assert [name for name, _ in found] == ["download_file", "extract", "install_binaries"]
    assert found[1][1]["format"] == "tar.xz"


def test_bundler_installs_itself():
    found = expand_composite("gem_install", {"gem": "bundler"}, recipe(_any()), "")
    assert found[0][0] == "install_gem_direct"


@pytest.mark.parametrize("action", sorted(FACTS["action_install_deps"]))
def test_dependencies_of_actions(action):
    facts = FACTS["action_install_deps"][action]
    found = recipe(f'[[steps]]\naction = "{action}"\n', name="zz")
    assert sorted(direct_dependencies(found, DARWIN)) == sorted(facts["install"])
    assert sorted(direct_dependencies(found, DEBIAN)) == sorted(
        facts["install"] + facts["linux_install"]
    )


def _any():
    return step("manual", text='"x"')


def test_the_filter_and_the_platform_of_the_plan():
    steps = step("apt_install", packages='["jq"]') + "\n" + step("apk_install", packages='["jq"]')
    assert [s.action for s in plan(steps).steps] == ["apt_install"]
    found = plan(steps, target=ALPINE)
    assert [s.action for s in found.steps] == ["apk_install"]
    assert (found.platform.os, found.platform.arch) == ("linux", "arm64")
    assert found.platform.linux_family == "alpine"


def test_the_family_is_part_of_a_plan_only_where_it_matters():
    assert plan(_any()).platform.linux_family == ""
    only_when = step("manual", text='"x"', when='{ linux_family = "debian" }')
    assert plan(only_when).platform.linux_family == ""
    packages = step("require_system", command='"jq"', packages='{ apt = ["jq"] }')
    assert plan(packages).platform.linux_family == "debian"


def test_flags_of_steps_and_plans():
    fetch = step("download_file", url='"https://example.invalid/x"', checksum=f'"{"a" * 64}"')
    found = plan(fetch)
    assert (found.steps[0].evaluable, found.steps[0].deterministic) == (True, True)
    assert found.deterministic
    mixed = plan(fetch + "\n" + step("run_command", command='"true"'))
    assert [s.deterministic for s in mixed.steps] == [True, False]
    assert not mixed.deterministic


def test_an_unsupported_target():
    with pytest.raises(PlanError) as wrong:
        plan(_any(), target=ALPINE, metadata='supported_libc = ["glibc"]')
    assert wrong.value.blame == "unsupported"
    assert "linux/arm64/alpine" in wrong.value.what


def test_patches_follow_the_last_unpacked_archive():
    steps = "\n".join(
        [
            step("extract", archive='"x.tar.gz"', format='"tar.gz"'),
            step("run_command", command='"make"'),
        ]
    )
    patches = "\n".join(
        [
            '[[patches]]\ndata = "--- a"',
            '[[patches]]\nurl = "https://example.invalid/p.diff"\nstrip = 2',
            f'checksum = "{"c" * 64}"',
        ]
    )
    found = plan(steps, rest=patches)
    assert [s.action for s in found.steps] == [
        "extract",
        "apply_patch_file",
        "download_file",
        "apply_patch_file",
        "run_command",
    ]
    assert found.steps[1].params == {"data": "--- a", "strip": 1}
    assert found.steps[3].params == {"file": "p.diff", "strip": 2}


# -- dependencies ----------------------------------------------------------------------------------


def test_the_tree_is_depth_first_and_enters_nothing_twice():
    known = catalogue(
        recipe(_any(), name="a", metadata='dependencies = ["z", "jq"]'),
        recipe(_any(), name="b", metadata='dependencies = ["a", "z"]'),
        recipe(_any(), name="z"),
    )
    tree = dependency_tree(recipe(_any(), metadata='dependencies = ["b", "z"]'), DEBIAN, known)
    assert tree.names() == ("z", "a", "b")
    assert [needed.recipe.name for needed in tree.needs] == ["b"]


def test_metadata_replaces_and_adds():
    steps = step("npm_install", package='"x"', executables='["x"]')
    assert list(direct_dependencies(recipe(steps), DEBIAN)) == ["nodejs"]
    replaced = recipe(steps, metadata='dependencies = ["go@1.22"]\nextra_dependencies = ["b"]')
    assert direct_dependencies(replaced, DEBIAN) == {"b": "", "go": "1.22"}


def test_a_step_may_name_its_own():
    steps = step("npm_install", package='"x"', executables='["x"]', dependencies='["bash", "jq"]')
    steps += "\n" + step("manual", text='"x"', extra_dependencies='["zlib"]')
    assert list(direct_dependencies(recipe(steps), DEBIAN)) == ["bash", "zlib"]


def test_when_counts_and_the_built_in_platform_does_not():
    steps = step("apk_install", packages='["x"]', dependencies='["a"]')
    steps += "\n" + step("manual", text='"x"', dependencies='["b"]', when='{ os = ["darwin"] }')
    assert list(direct_dependencies(recipe(steps), DEBIAN)) == ["a"]


def test_a_name_that_is_only_satisfied():
    openssl = recipe(
        _any(),
        name="openssl",
        rest='[metadata.satisfies]\nhomebrew = ["openssl@3"]\naliases = ["tls"]\n',
    )
    known = catalogue(openssl)
    assert known.find("openssl@3") is openssl
    assert known.find("tls") is None


def test_what_is_missing_is_said():
    found = plan(_any(), metadata='dependencies = ["nowhere"]', catalogue=catalogue())
    assert found.dependencies == []
    assert found.obstacles == ["jq needs nowhere, which is in no recipe folder"]


def test_a_dependency_that_excludes_the_target():
    known = catalogue(recipe(_any(), name="a", metadata='supported_libc = ["musl"]'))
    found = plan(_any(), metadata='dependencies = ["a"]', catalogue=known)
    assert "a, which does not support linux/amd64/debian" in found.obstacles[0]


def test_versions_of_dependencies():
    fetch = step("download", url='"https://example.invalid/{version}"')
    known = catalogue(recipe(fetch, name="a"))
    with pytest.raises(PlanError, match="a: step 1"):
        plan(_any(), metadata='dependencies = ["a"]', catalogue=known)
    pinned = plan(_any(), metadata='dependencies = ["a@1.0"]', catalogue=known)
    assert pinned.dependencies[0].version == "1.0"
    found = plan(
        _any(), metadata='dependencies = ["a@1.0"]', catalogue=known, versions={"a": "2.0"}
    )
    assert found.dependencies[0].steps[0].url == "https://example.invalid/2.0"


def test_too_deep():
    chain = [
        recipe(_any(), name=f"d{n}", metadata=f'dependencies = ["d{n + 1}"]') for n in range(6)
    ]
    known = catalogue(*chain, recipe(_any(), name="d6"))
    with pytest.raises(PlanError, match="6 deep"):
        resolve(chain[0], DEBIAN, catalogue=known)
    assert len(resolve(chain[1], DEBIAN, catalogue=known).dependencies) == 1


# -- the catalogue ---------------------------------------------------------------------------------


def test_folders_in_order_and_broken_files(tmp_path):
    for folder, note in (("first", "1"), ("second", "2")):
        for name in ("a", "b"):
            path = tmp_path / folder / name[0] / f"{name}.toml"
            path.parent.mkdir(parents=True)
            path.write_text(
                f'[metadata]\nname = "{name}"\ndescription = "{note}"\n{_any()}\n'
                '[verify]\ncommand = "x"\n'
            )
    (tmp_path / "first/b/b.toml").write_text("name = \n")
    (tmp_path / "second/other.toml").write_text(
        f'[metadata]\nname = "c"\n{_any()}\n[metadata.satisfies]\nhomebrew = ["see"]\n'
        '[verify]\ncommand = "x"\n'
    )
    known = Catalogue([tmp_path / "first", tmp_path / "second", tmp_path / "none"])
    assert known.find("a").metadata.description == "1"
    assert known.find("b").metadata.description == "2"
    assert known.find("c").name == "c"
    assert known.find("see").name == "c"
    assert known.find("d") is None


def test_files_are_read_once(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(f'[metadata]\nname = "a"\n{_any()}\n[verify]\ncommand = "x"\n')
    reads = []

    def load(file):
        reads.append(file)
        return recipe(_any(), name=file.stem)

    known = Catalogue([tmp_path], load=load)
    assert known.find("a") is known.find("a")
    assert known.find("nothing") is None
    assert reads == [path]
