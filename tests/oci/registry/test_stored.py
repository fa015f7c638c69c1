"""Pulls into a store from a registry that fails: nothing is recorded that is not whole."""

from __future__ import annotations

import json

import pytest

from pytest_sandbox.errors import ImageUnavailable
from pytest_sandbox.oci.platforms import parse_platform
from pytest_sandbox.oci.pull import pull
from pytest_sandbox.oci.reference import parse_reference
from tests.oci import making
from tests.oci.making import image, index, on
from tests.oci.registry.scripted import body, cut, status
from tests.oci.store.conftest import store, supervisor  # noqa: F401 - fixtures

AMD64 = parse_platform("linux/amd64")


@pytest.fixture
def made():
    layers = [making.tar_of({f"file{n}": bytes([n]) * 50_000}) for n in range(3)]
    return index([(image(*layers), on("amd64")), (image(architecture="arm64"), on("arm64"))])


@pytest.fixture
def server(serve, made):
    server = serve()
    server.add("library/app", "latest", made)
    return server


@pytest.fixture
def take(server, client, store):  # noqa: F811
    """Pulls the app into the store."""
    reference = parse_reference(f"{server.host}/library/app")

    def take(policy="missing"):
        registry = client().registry
        return pull(reference, store=store, registry=registry, platform=AMD64, policy=policy)

    take.recorded = lambda: store.image(reference, AMD64)
    return take


def test_what_is_there_is_used_with_no_request(server, take, made):
    assert take().index == made.digest
    asked = len(server.log)
    assert take().index == take("never").index == made.digest
    assert len(server.log) == asked
    take("always")
    assert [each.method for each in server.requests("/manifests/")][-1] == "HEAD"
    assert len(server.requests("/blobs/")) == 4


@pytest.mark.parametrize("policy", ["missing", "never"])
def test_layers_of_an_earlier_boot_are_unpacked_again_with_no_request(server, take, store, policy):  # noqa: F811
    image = take()
    for key in image.keys:
        record = store.layers.record(key).folder / "layer.json"
        told = json.loads(record.read_text())
        record.write_text(json.dumps(told | {"boot": "another", "synced": False}))
    assert take.recorded() is None
    asked = len(server.log)
    again = take(policy)
    assert (again.keys, again.index, again.digest) == (image.keys, image.index, image.digest)
    assert take.recorded() is not None
    assert len(server.log) == asked


def test_never_asks_nobody(server, take):
    with pytest.raises(ImageUnavailable, match="not to be pulled"):
        take("never")
    assert server.log == []


def test_a_moved_tag_is_pulled_again_when_asked(server, take):
    take()
    newer = image(making.tar_of({"newer": b"1"}))
    server.add("library/app", "latest", newer)
    assert take().index != newer.digest
    assert take("always").index == newer.digest


FAULTS = {
    "another layer": ("GET .*/blobs/{layer}", lambda size: [body(bytes(size))]),
    "a longer layer": ("GET .*/blobs/{layer}", lambda size: [body(bytes(size + 9))]),
    "a lost layer": ("GET .*/blobs/{layer}", lambda _: [status(404)]),
    "cut for ever": ("GET .*/blobs/{layer}", lambda _: [cut(5)] * 4),
    "another manifest": ("GET .*/manifests/sha256", lambda _: [body(b"{}")]),
    "an ambiguous index": (
        "GET .*/manifests/latest",
        lambda _: [body(b'{"schemaVersion": 2, "manifests": [], "layers": []}')],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_pull_records_nothing_and_a_good_one_works(server, take, made, fault):
    pattern, actions = FAULTS[fault]
    layer = made.manifests[0].parsed.layers[1]
    server.on(pattern.format(layer=layer.digest), *actions(layer.size))
    with pytest.raises(ImageUnavailable) as caught:
        take()
    assert "\n" not in str(caught.value)
    assert take.recorded() is None
    assert take().index == made.digest
    assert take.recorded().index == made.digest
