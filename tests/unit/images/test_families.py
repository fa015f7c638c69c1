"""images/families.toml and its overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.images.families import load_families, untagged
from pytest_sandbox.targets import FAMILIES, FAMILY_MANAGERS

FACTS = json.loads(
    (Path(__file__).parents[2] / "data/images/families.json").read_text(encoding="utf-8")
)


def test_the_shipped_families_are_the_registrys():
    found = load_families()
    assert set(found) == set(FAMILIES)
    for name, facts in FACTS.items():
        family = found[name]
        assert family.image == facts["image"]
        assert family.manager == FAMILY_MANAGERS[name]
        for part, packages in facts["infra_packages"].items():
            assert list(getattr(family.infrastructure, part)) == packages
    assert found["debian"].suite == "trixie"
    assert found["arch"].arches == ("amd64",)


def test_a_file_replaces_only_what_it_names(tmp_path):
    file = tmp_path / "families.toml"
    file.write_text('[debian]\nimage = "registry.example:5000/debian:13"\n')
    found = load_families(file)
    assert found["debian"].image == "registry.example:5000/debian:13"
    assert found["debian"].infrastructure == load_families()["debian"].infrastructure
    assert found["alpine"] == load_families()["alpine"]


def test_an_image_of_the_user_s_own_is_for_every_architecture_unless_the_file_says(tmp_path):
    file = tmp_path / "families.toml"
    for text, arches in (
        ('suite = "rolling"', ("amd64",)),
        ('image = "example.org/arch"', ("amd64", "arm64")),
        ('image = "example.org/arch"\narches = ["arm64"]', ("arm64",)),
    ):
        file.write_text(f"[arch]\n{text}\n")
        assert load_families(file)["arch"].arches == arches


def test_the_registrys_own_file_is_understood(tmp_path):
    file = tmp_path / "container-images.json"
    file.write_text(json.dumps(FACTS))
    assert load_families(file) == load_families()


def test_overrides_win(tmp_path):
    file = tmp_path / "families.toml"
    file.write_text('[debian]\nimage = "debian:12"\n')
    assert load_families(file, {"debian": "debian:11"})["debian"].image == "debian:11"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = [", "families.toml: "),
        ("[gentoo]\nimage = 'x'", "gentoo: is no family"),
        ("debian = 1", "debian: is no family"),
        ("[debian]\nimage = 1", "debian: Expected `str`"),
        ("[debian]\nimage = 'a b'", "debian.image: 'a b' is no image reference"),
        ("[debian]\nimage = 'x\\nRUN evil'", "is no image reference"),
        ("[debian]\ninfra_packages = { core = ['a;b'] }", "debian.infra_packages: 'a;b'"),
        ("[debian]\nimgae = 'x'", "unknown field `imgae`"),
    ],
)
def test_errors_name_file_and_key(tmp_path, text, what):
    file = tmp_path / "families.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as wrong:
        load_families(file)
    assert what in wrong.value.what
    assert str(file) in wrong.value.what


def test_wrong_overrides(tmp_path):
    with pytest.raises(UsageError, match="unknown family 'gentoo'"):
        load_families(overrides={"gentoo": "x"})
    with pytest.raises(UsageError, match="no image reference"):
        load_families(overrides={"debian": "x y"})
    with pytest.raises(UsageError, match="No such file"):
        load_families(tmp_path / "none.toml")


def test_digests_come_off():
    assert untagged("debian:12@sha256:ab") == ("debian:12", "sha256:ab")
    assert untagged("debian:12") == ("debian:12", "")
