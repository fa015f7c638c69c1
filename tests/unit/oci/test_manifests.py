"""Manifests and indexes: read strictly, ambiguous ones refused."""

from __future__ import annotations

import json

import pytest

from pytest_sandbox.errors import Blame, InvalidImage
from pytest_sandbox.oci.bounds import Bounds
from pytest_sandbox.oci.descriptors import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    parse_descriptor,
)
from pytest_sandbox.oci.digests import Hasher, check_bytes, check_digest, digest_of
from pytest_sandbox.oci.documents import read_document
from pytest_sandbox.oci.manifests import (
    Index,
    Manifest,
    config_platform,
    diff_ids,
    parse_config,
    parse_manifest,
)

D = "sha256:" + "0" * 64
CONFIG = {"mediaType": OCI_CONFIG, "digest": D, "size": 7}
LAYER = {"mediaType": f"{OCI_LAYER}+gzip", "digest": D, "size": 9}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def raw(value):
    return json.dumps(value).encode()


def without(value, *names):
    return {name: each for name, each in value.items() if name not in names}


def test_a_manifest_keeps_its_bytes():
    data = b" " + raw(MANIFEST) + b"\n"
    found = parse_manifest(data, f"{OCI_MANIFEST}; charset=utf-8")
    assert isinstance(found, Manifest)
    assert (found.raw, found.digest) == (data, digest_of(data))
    assert found.descriptor.size == len(data)
    assert [layer.size for layer in found.layers] == [9]
    found.check_image(what="x")


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_a_body_without_a_media_type_is_what_its_header_says(media_type):
    found = parse_manifest(raw(without(MANIFEST, "mediaType")), media_type)
    assert found.media_type == media_type


def test_a_header_may_be_missing_if_the_body_says_it():
    assert isinstance(parse_manifest(raw(INDEX), ""), Index)


def test_urls_of_a_descriptor_are_dropped():
    found = parse_descriptor({**LAYER, "urls": ["http://169.254.169.254/x"]}, where="here")
    assert "169.254" not in repr(found)


AMBIGUOUS = [
    ({**MANIFEST, "manifests": []}, OCI_MANIFEST, "ambiguous.*'manifests'"),
    ({**INDEX, "layers": []}, OCI_INDEX, "ambiguous.*'layers'"),
    ({**INDEX, "config": CONFIG}, OCI_INDEX, "ambiguous.*'config'"),
    (MANIFEST, DOCKER_MANIFEST, "ambiguous: it came as"),
    (MANIFEST, OCI_INDEX, "ambiguous: it came as"),
    (INDEX, DOCKER_INDEX, "ambiguous: it came as"),
    ({**MANIFEST, "Layers": []}, OCI_MANIFEST, "key 'Layers'"),
    ({**MANIFEST, "Manifests": []}, OCI_MANIFEST, "key 'Manifests'"),
]


@pytest.mark.parametrize(("value", "content_type", "text"), AMBIGUOUS)
def test_what_two_readers_could_read_differently_is_refused(value, content_type, text):
    with pytest.raises(InvalidImage, match=text) as caught:
        parse_manifest(raw(value), content_type)
    assert caught.value.blame is Blame.UPSTREAM


BROKEN = [
    ([], OCI_MANIFEST, "is a JSON list"),
    (without(MANIFEST, "schemaVersion"), OCI_MANIFEST, "schemaVersion"),
    ({**MANIFEST, "schemaVersion": 3}, OCI_MANIFEST, "schemaVersion"),
    ({**MANIFEST, "mediaType": 5}, OCI_MANIFEST, "mediaType is a int"),
    (without(MANIFEST, "config"), OCI_MANIFEST, "config is no descriptor"),
    (without(MANIFEST, "layers"), OCI_MANIFEST, "layers is a NoneType"),
    ({**MANIFEST, "layers": {}}, OCI_MANIFEST, "layers is a dict"),
    ({**MANIFEST, "layers": [5]}, OCI_MANIFEST, r"layers\[0\] is no descriptor"),
    ({**MANIFEST, "layers": [{**LAYER, "size": -1}]}, OCI_MANIFEST, "no size"),
    ({**MANIFEST, "layers": [{**LAYER, "size": True}]}, OCI_MANIFEST, "no size"),
    ({**MANIFEST, "layers": [{**LAYER, "size": 1.5}]}, OCI_MANIFEST, "no size"),
    ({**MANIFEST, "layers": [{**LAYER, "digest": "sha256:1"}]}, OCI_MANIFEST, "no digest"),
    ({**MANIFEST, "layers": [{**LAYER, "digest": "sha256:../../x"}]}, OCI_MANIFEST, "no digest"),
    ({**MANIFEST, "layers": [{**LAYER, "digest": "md5:00"}]}, OCI_MANIFEST, "not supported"),
    ({**MANIFEST, "layers": [{**LAYER, "mediaType": "x"}]}, OCI_MANIFEST, "no media type"),
    ({**MANIFEST, "annotations": {"a": 1}}, OCI_MANIFEST, "annotations are not texts"),
    (MANIFEST, "text/html", "ambiguous"),
    (without(MANIFEST, "mediaType"), "text/html", "is no image"),
    (without(MANIFEST, "mediaType"), "", r"\(none\)"),
    ({**INDEX, "manifests": [{**LAYER, "platform": 5}]}, OCI_INDEX, "its platform is a int"),
]


@pytest.mark.parametrize(("value", "content_type", "text"), BROKEN)
def test_broken_documents_are_refused_by_name(value, content_type, text):
    with pytest.raises(InvalidImage, match=text):
        parse_manifest(raw(value), content_type)


@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, ""),
        ({}, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ({"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+json"),
    ],
)
def test_dockers_schema_1_is_refused_by_its_name(value, content_type):
    with pytest.raises(InvalidImage, match="schema 1") as caught:
        parse_manifest(raw(value), content_type)
    assert caught.value.blame is Blame.UNSUPPORTED


def test_an_index_skips_attestations_and_unknown_kinds():
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries = [
        {**LAYER, "mediaType": OCI_MANIFEST, "size": 1, "platform": unknown},
        {
            **LAYER,
            "mediaType": OCI_MANIFEST,
            "size": 2,
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        },
        {**LAYER, "mediaType": "application/vnd.future.thing+json", "size": 3},
        {**LAYER, "mediaType": OCI_INDEX, "size": 4},
        {
            **LAYER,
            "mediaType": DOCKER_MANIFEST,
            "size": 5,
            "platform": {"os": "linux", "architecture": "aarch64"},
        },
    ]
    found = parse_manifest(raw({**INDEX, "manifests": entries}), OCI_INDEX)
    assert isinstance(found, Index)
    assert [entry.size for entry in found.images()] == [5]
    assert str(found.images()[0].platform) == "linux/arm64"
    assert [entry.size for entry in found.indexes()] == [4]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "helm"),
        ({"config": {**CONFIG, "size": (8 << 20) + 1}}, "its config has"),
        ({"layers": [{**LAYER, "mediaType": f"{OCI_LAYER}+encrypted"}]}, "layer 1 is"),
        ({"layers": [LAYER, {**LAYER, "size": 1 << 40}]}, "layer 2 has"),
    ],
)
def test_what_cannot_be_unpacked_is_no_image(change, text):
    found = parse_manifest(raw({**MANIFEST, **change}), OCI_MANIFEST)
    assert isinstance(found, Manifest)
    with pytest.raises(InvalidImage, match=text):
        found.check_image(what="x")


def test_bounds_hold_and_can_be_raised():
    many = raw({**MANIFEST, "layers": [LAYER] * 513})
    with pytest.raises(InvalidImage, match="513 layers; at most 512"):
        parse_manifest(many, OCI_MANIFEST)
    assert len(parse_manifest(many, OCI_MANIFEST, Bounds(layers=600)).layers) == 513
    padded = raw({**MANIFEST, "annotations": {"a": "x" * (4 << 20)}})
    with pytest.raises(InvalidImage, match="at most 4194304"):
        parse_manifest(padded, OCI_MANIFEST)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": 1, "a": 2}', "'a' stands in it twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' stands in it twice"),
        (b'{"a": NaN}', "NaN is no JSON value"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "no JSON"),
        (b"{} x", "no JSON"),
        (b"7", "is a JSON int"),
    ],
)
def test_json_from_strangers(data, text):
    with pytest.raises(InvalidImage, match=text):
        read_document(data, what="it", limit=4 << 20)


def test_diff_ids_must_be_as_many_as_layers():
    config = {"rootfs": {"type": "layers", "diff_ids": [D]}}
    assert diff_ids(config, layers=1) == (D,)
    with pytest.raises(InvalidImage, match="lists 1 layers, its manifest 2"):
        diff_ids(config, layers=2)
    for broken in (
        {},
        {"rootfs": []},
        {"rootfs": {"diff_ids": "x"}},
        {"rootfs": {"diff_ids": [1]}},
    ):
        with pytest.raises(InvalidImage):
            diff_ids(broken)


def test_a_config_says_what_it_runs_on():
    config = parse_config(b'{"os": "linux", "architecture": "arm", "variant": "v6"}')
    assert str(config_platform(config)) == "linux/arm/v6"
    with pytest.raises(InvalidImage, match="names no operating system"):
        config_platform({"os": "linux"})


def test_sizes_are_looked_at_before_digests():
    data = b"some bytes"
    check_bytes(data, digest_of(data), len(data))
    with pytest.raises(InvalidImage, match="has 10 bytes, not 11"):
        check_bytes(data, D, 11)
    with pytest.raises(InvalidImage, match=f"has the digest {digest_of(data)}, not {D}"):
        check_bytes(data, D, 10)


def test_a_hasher_stops_at_the_first_byte_too_many():
    hasher = Hasher(digest_of(b"abc"), 3)
    hasher.update(b"ab")
    with pytest.raises(InvalidImage, match="more than 3"):
        hasher.update(b"cd")
    hasher.reset()
    hasher.update(b"abc")
    hasher.check()


@pytest.mark.parametrize(
    "text", [None, 5, "", "sha256:", "sha256:" + "0" * 63, D + "\n", D.upper()]
)
def test_what_is_no_digest(text):
    with pytest.raises(InvalidImage, match="digest"):
        check_digest(text)
