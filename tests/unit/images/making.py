"""Requirements and specs for the tests of this folder."""

from __future__ import annotations

from pytest_sandbox.images.families import load_families
from pytest_sandbox.images.requirements import Repository, SystemRequirements
from pytest_sandbox.images.spec import derive_spec
from pytest_sandbox.targets import FAMILY_MANAGERS, Target

DEBIAN = Target.parse("linux/amd64/debian")
KEY = "1500c1f56fa9e26b9b8f42452a553675796ade0807cdce11975eb98170b3a570"
FAMILIES = load_families()


def needs(packages=(), *, family="debian", **keywords):
    """Requirements with the packages of one family."""
    names = {FAMILY_MANAGERS[family]: tuple(packages)} if packages else {}
    return SystemRequirements(packages=names, **keywords)


def apt_repository(**changes):
    """An apt repository."""
    values = {
        "manager": "apt",
        "kind": "repo",
        "url": "https://example.invalid/debian",
        "suite": "trixie",
        "components": ("main", "extra"),
        "key_url": "https://example.invalid/key.asc",
        "key_sha256": KEY,
    }
    return Repository(**{**values, **changes})


def spec_for(requirements, target=DEBIAN, **keywords):
    """The spec with the shipped families."""
    return derive_spec(requirements, target, **{"families": FAMILIES, **keywords})
