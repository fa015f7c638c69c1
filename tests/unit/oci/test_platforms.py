"""Platforms: their spellings, and which entry of an index is taken."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage, UsageError
from pytest_sandbox.oci.descriptors import OCI_MANIFEST, Descriptor
from pytest_sandbox.oci.platforms import (
    Platform,
    choose,
    host_platform,
    normalise,
    parse_platform,
    platform_of,
    runs,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("armel", "linux/arm/v6"),
        ("LINUX/AMD64/V1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("i686", "linux/386"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_a_platform_has_one_spelling(text, expected):
    assert str(parse_platform(text)) == expected


def test_an_os_alone_is_this_machines_architecture():
    assert parse_platform("linux") == host_platform()


@pytest.mark.parametrize("text", ["", "linux/", "linux/z80", "plan9/amd64", "a/b/c/d", "linux/a b"])
def test_what_is_no_platform_is_refused(text):
    with pytest.raises(UsageError, match="is no platform"):
        parse_platform(text)


def entry(text, number=0):
    parts = text.split("/")
    digest = f"sha256:{number:064x}"
    platform = normalise(Platform(*parts)) if text else None
    return Descriptor(OCI_MANIFEST, digest, 1, platform=platform)


@pytest.mark.parametrize(
    ("offered", "wanted", "taken"),
    [
        (["linux/amd64", "linux/arm64"], "linux/arm64", 1),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v6", 0),
        (["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "linux/amd64", 2),
        (["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "linux/amd64/v2", 1),
        (["linux/amd64", "linux/amd64/v2"], "linux/amd64/v4", 1),
        (["linux/arm64/v8"], "linux/arm64", 0),
        (["linux/arm64/v9", "linux/arm64"], "linux/arm64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        ([""], "linux/amd64", 0),
        (["windows/amd64", "linux/amd64"], "linux/amd64", 1),
    ],
)
def test_the_exact_variant_is_taken_and_then_the_next_lower(offered, wanted, taken):
    entries = [entry(text, number) for number, text in enumerate(offered)]
    assert choose(entries, parse_platform(wanted), what="x") is entries[taken]


@pytest.mark.parametrize(
    ("offered", "wanted"),
    [
        (["linux/arm/v7"], "linux/arm/v6"),
        (["linux/amd64/v2"], "linux/amd64"),
        (["linux/arm64"], "linux/arm"),
        (["linux/386"], "linux/amd64"),
        (["", "linux/arm64"], "linux/amd64"),
        ([], "linux/amd64"),
    ],
)
def test_no_match_lists_what_exists(offered, wanted):
    entries = [entry(text, number) for number, text in enumerate(offered)]
    with pytest.raises(ImageUnavailable) as caught:
        choose(entries, parse_platform(wanted), what="the image")
    assert caught.value.blame is Blame.UNSUPPORTED
    assert wanted in caught.value.what
    for text in filter(None, offered):
        assert text in caught.value.what


def test_features_that_were_not_asked_for_do_not_match():
    special = Platform("linux", "amd64", os_features=("odd",))
    assert not runs(special, Platform("linux", "amd64"))
    assert runs(special, Platform("linux", "amd64", os_features=("odd", "other")))


def test_a_windows_version_must_be_the_wanted_one():
    have = Platform("windows", "amd64", os_version="10.0.17763.1")
    assert runs(have, Platform("windows", "amd64"))
    assert not runs(have, Platform("windows", "amd64", os_version="10.0.20348.1"))


@pytest.mark.parametrize(
    "fields",
    [
        {"os": 1, "architecture": "amd64"},
        {"os": "linux", "architecture": ["amd64"]},
        {"os": "linux", "architecture": "amd64\n"},
        {"os": "linux", "architecture": "a" * 200},
        {"os": "linux", "architecture": "amd64", "os.features": "x"},
    ],
)
def test_fields_of_other_kinds_are_refused(fields):
    with pytest.raises(InvalidImage):
        platform_of(fields, where="here")
