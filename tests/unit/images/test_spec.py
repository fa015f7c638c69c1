"""SystemRequirements -> ImageSpec, and the image's name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from pytest_sandbox.errors import ImageUnavailable, SpecError
from pytest_sandbox.images.families import load_families
from pytest_sandbox.images.name import image_hash, image_key, image_name
from pytest_sandbox.images.requirements import NOTHING, Repository, SystemRequirements, merged
from pytest_sandbox.images.spec import augment
from pytest_sandbox.targets import FAMILY_MANAGERS, MANAGERS, Target
from tests.unit.images.making import DEBIAN, FAMILIES, KEY, apt_repository, needs, spec_for

DATA = Path(__file__).parents[2] / "data/images"
AUGMENT = json.loads((DATA / "augment.json").read_text(encoding="utf-8"))
CONTAINER = json.loads((DATA / "container.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", AUGMENT, ids=range(len(AUGMENT)))
def test_augment_is_the_registrys_but_sorted_and_without_duplicates(case):
    found = augment(case["have"] or {}, FAMILIES.get(case["family"]), case["mode"])
    facts = case["packages"] or {}
    assert found == {manager: tuple(sorted(set(names))) for manager, names in facts.items()}


def _repository(facts):
    if facts["Type"] == "ppa":
        return Repository(manager=facts["Manager"], kind="ppa", ppa=facts["PPA"])
    return Repository(
        manager=facts["Manager"],
        kind="repo",
        url=facts["URL"],
        key_url=facts["KeyURL"],
        key_sha256=facts["KeySHA256"] or KEY,
    )


@pytest.mark.parametrize("case", CONTAINER, ids=range(len(CONTAINER)))
def test_bases_and_conflicts_are_the_registrys(case):
    packages = {manager: tuple(names) for manager, names in (case["packages"] or {}).items()}
    wanted = SystemRequirements(
        packages=packages,
        repositories=tuple(_repository(one) for one in case["repositories"] or ()),
    )
    managers = sorted({*packages, *(one.manager for one in wanted.repositories)})
    family = MANAGERS.get(managers[0], "debian") if managers else "debian"
    target = Target("linux", "amd64", family)
    if case.get("error"):
        with pytest.raises(SpecError) as wrong:
            spec_for(wanted, target)
        assert wrong.value.what.startswith(case["error"])
        return
    found = spec_for(wanted, target)
    if not managers:
        assert found.plain
        return
    assert found.base.endswith(case["base_image"])
    assert not found.plain


def test_a_manager_of_another_family():
    with pytest.raises(SpecError, match='"apt" is for debian, but the target is linux/amd64/arch'):
        spec_for(needs(["jq"]), Target.parse("linux/amd64/arch"))


def test_no_base_for_an_architecture_is_unsupported_and_an_absence():
    target = Target.parse("linux/arm64/arch")
    with pytest.raises(SpecError, match=r"has no base image for arm64: .* is for amd64") as it:
        spec_for(NOTHING, target)
    assert it.value.blame == "unsupported"
    assert isinstance(it.value, ImageUnavailable)
    own = load_families(overrides={"arch": "example.org/arch:arm"})
    assert spec_for(NOTHING, target, families=own).base == "example.org/arch:arm"


def test_no_images_off_linux():
    with pytest.raises(SpecError, match="no images for darwin/arm64") as wrong:
        spec_for(NOTHING, Target.parse("darwin/arm64"))
    assert wrong.value.blame == "unsupported"


def test_nothing_needed_is_the_plain_base():
    found = spec_for(NOTHING, certificates=["PEM"])
    assert found.plain
    assert found.certificates == ()
    assert image_name(found) == FAMILIES["debian"].image


def test_a_system_that_reaches_out_trusts_what_the_host_trusts():
    assert spec_for(SystemRequirements(network=True)).plain
    found = spec_for(SystemRequirements(network=True), certificates=["PEM"])
    assert found.certificates == ("PEM",)
    assert not found.plain


def test_infrastructure_only_where_it_is_needed():
    assert spec_for(needs(["jq"])).packages == {"apt": ("jq",)}
    built = spec_for(needs(["jq"], infrastructure="build"))
    assert built.packages == {"apt": ("build-essential", "ca-certificates", "curl", "jq")}


def test_a_placeholder_never_reaches_a_dockerfile():
    with pytest.raises(SpecError, match="placeholder"):
        spec_for(needs(["python{version}"]))


def test_services_become_notices():
    assert "docker" in spec_for(needs(["docker.io"], services=("docker",))).notices[0]


# -- the name --------------------------------------------------------------------------------------


def test_order_and_duplicates_change_nothing():
    first = apt_repository()
    second = apt_repository(url="https://example.invalid/other", key_sha256="b" * 64)
    one = merged([needs(["a", "b"], repositories=(first, second), groups=("x", "y"))])
    two = merged(
        [
            needs(["b", "a", "b"], repositories=(second, first, first), groups=("y", "x")),
            needs(["a"]),
        ]
    )
    assert image_name(spec_for(one, certificates=["P", "Q"])) == image_name(
        spec_for(two, certificates=["Q", "P", "P"])
    )


def _variants():
    yield spec_for(needs(["a"]))
    yield spec_for(needs(["b"]))
    yield spec_for(needs(["a", "b"]))
    yield spec_for(needs(["a"]), Target.parse("linux/arm64/debian"))
    yield spec_for(needs(["a"]), families=load_families(overrides={"debian": "debian:12"}))
    yield spec_for(needs(["a"]), certificates=["PEM"])
    yield spec_for(needs(["a"]), certificates=["PEM 2"])
    yield spec_for(needs(["a"]), base_digests={"docker.io/library/debian:trixie-slim": "f" * 64})
    yield spec_for(needs(["a"], groups=("g",)))
    yield spec_for(needs(["a"], repositories=(apt_repository(),)))
    for change in (
        {"url": "https://example.invalid/2"},
        {"suite": "sid"},
        {"components": ("main",)},
        {"key_url": "https://example.invalid/2.asc"},
        {"key_sha256": "c" * 64},
    ):
        yield spec_for(needs(["a"], repositories=(apt_repository(**change),)))
    yield spec_for(
        needs(["a"], repositories=(Repository(manager="apt", kind="ppa", ppa="owner/name"),))
    )
    for family in ("rhel", "arch", "alpine", "suse"):
        target = Target("linux", "amd64", family)
        yield spec_for(needs(["a"], family=family), target)


def test_everything_else_changes_it():
    names = [image_name(spec) for spec in _variants()]
    assert len(set(names)) == len(names) == 20


def test_the_form_of_names():
    spec = spec_for(needs(["jq"]))
    assert re.fullmatch(r"tsuku/sandbox-cache:[0-9a-f]{16}", image_name(spec))
    assert image_name(spec, "mine/cache") == f"mine/cache:{image_hash(spec)[:16]}"
    assert len(image_hash(spec)) == 64


def test_the_key_is_canonical_and_without_the_references_tag():
    key = msgspec.json.decode(image_key(spec_for(needs(["jq"]))))
    assert list(key) == sorted(key)
    assert key["base"] == FAMILIES["debian"].image.partition("@")[2]
    retagged = load_families(overrides={"debian": f"mirror.example/debian:x@{key['base']}"})
    assert image_name(spec_for(needs(["jq"]), families=retagged)) == image_name(
        spec_for(needs(["jq"]))
    )


def test_a_recorded_base_takes_the_digests_place():
    name = "docker.io/library/debian:trixie-slim"
    found = spec_for(needs(["jq"]), base_digests={name: "e" * 64})
    assert (found.base, found.base_digest) == (name, f"sha256:{'e' * 64}")
    assert found.reference == FAMILIES["debian"].image
    other = spec_for(needs(["jq"]), base_digests={"docker.io/library/debian:12": "e" * 64})
    assert other == spec_for(needs(["jq"]))


def test_every_manager_has_its_family():
    assert {family.manager for family in FAMILIES.values()} == set(FAMILY_MANAGERS.values())
    assert DEBIAN.family in FAMILIES
