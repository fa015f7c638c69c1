"""From a reference to one verified image: indexes, platforms, ambiguous and oversized documents."""

from __future__ import annotations

import gzip
import json

import pytest

from pytest_sandbox.errors import Blame, ImageUnavailable, InvalidImage, RegistryError
from pytest_sandbox.oci.bounds import Bounds
from pytest_sandbox.oci.descriptors import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from pytest_sandbox.oci.platforms import parse_platform
from pytest_sandbox.oci.reference import parse_reference
from tests.oci import making
from tests.oci.making import Made, described, digest, document, image, index, on
from tests.oci.registry.scripted import body, status

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")


@pytest.fixture
def server(serve):
    return serve()


def attestation():
    """What BuildKit puts beside an image: a manifest that is none of an image."""
    unknown = {"os": "unknown", "architecture": "unknown"}
    note = {"vnd.docker.reference.type": "attestation-manifest"}
    return image(config={"os": "unknown", "architecture": "unknown"}).entry(
        platform=unknown, annotations=note
    )


def test_the_platform_is_chosen_and_the_attestation_skipped(server, client):
    amd, arm = image(), image(architecture="arm64")
    made = index([attestation(), (arm, on("arm64", "v8")), (amd, on("amd64"))])
    server.add("library/app", "latest", made)
    mine = client()
    for wanted, taken in ((AMD64, amd), (ARM64, arm)):
        found = mine.resolve(server, platform=wanted)
        assert found.manifest.digest == taken.digest
        assert found.digest == made.digest
        assert [each.raw for each in found.indexes] == [made.raw]
        assert found.platform == wanted


def test_dockers_own_media_types(server, client):
    tar = making.tar_of({"a": b"1"})
    layer = gzip.compress(tar, mtime=0)
    config = document(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [digest(tar)]},
        }
    )
    manifest = Made(
        document(
            {
                "schemaVersion": 2,
                "mediaType": DOCKER_MANIFEST,
                "config": described(config, DOCKER_CONFIG),
                "layers": [described(layer, f"{DOCKER_LAYER}.gzip")],
            }
        ),
        DOCKER_MANIFEST,
        {digest(config): config, digest(layer): layer},
    )
    entry = {**manifest.entry(), "platform": on("amd64")}
    raw = document({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [entry]})
    top = Made(raw, DOCKER_INDEX, manifest.blobs, [manifest])
    server.add("library/app", "latest", top)
    assert client().resolve(server, platform=AMD64).config == config


@pytest.mark.parametrize("platform", [on("amd64"), None])
def test_an_index_in_an_index(server, client, platform):
    amd = image()
    made = index(
        [(image(architecture="arm64"), on("arm64")), (index([(amd, on("amd64"))]), platform)]
    )
    server.add("library/app", "latest", made)
    found = client().resolve(server, platform=AMD64)
    assert found.manifest.digest == amd.digest
    assert len(found.indexes) == 2


def test_an_index_in_an_index_in_an_index_is_too_deep(server, client):
    deep = index([(index([(index([(image(), on("amd64"))]), None)]), None)])
    server.add("library/app", "latest", deep)
    with pytest.raises(InvalidImage, match="nested more than 2 deep"):
        client().resolve(server, platform=AMD64)
    found = client(bounds=Bounds(index_depth=3)).resolve(server, platform=AMD64)
    assert len(found.indexes) == 3


def test_unknown_media_types_in_an_index_are_skipped(server, client):
    amd = image()
    odd = {**amd.entry(), "mediaType": "application/vnd.future+json", "platform": on("amd64")}
    server.add("library/app", "latest", index([odd, (amd, on("amd64"))]))
    assert client().resolve(server, platform=AMD64).manifest.digest == amd.digest


def test_no_image_for_the_platform_lists_those_that_exist(server, client):
    made = index([(image(), on("amd64")), (image(architecture="arm"), on("arm", "v6"))])
    server.add("library/app", "latest", made)
    with pytest.raises(ImageUnavailable, match="linux/amd64, linux/arm/v6") as caught:
        client().resolve(server, platform=parse_platform("linux/s390x"))
    assert caught.value.blame is Blame.UNSUPPORTED


def test_a_single_image_of_another_architecture_is_refused(server, client):
    server.add("library/app", "latest", image(architecture="arm64"))
    with pytest.raises(
        ImageUnavailable, match="made for linux/arm64, not for linux/amd64"
    ) as caught:
        client().resolve(server, platform=AMD64)
    assert "--platform linux/arm64" in caught.value.next_step


def test_an_index_that_lies_about_an_architecture_is_refused(server, client):
    server.add("library/app", "latest", index([(image(architecture="arm64"), on("amd64"))]))
    with pytest.raises(ImageUnavailable, match="made for linux/arm64, not for linux/amd64"):
        client().resolve(server, platform=AMD64)


def test_arm_images_that_leave_their_variant_out(server, client):
    v6 = image(architecture="arm")
    server.add("library/app", "latest", index([(v6, on("arm", "v6"))]))
    found = client().resolve(server, platform=parse_platform("linux/arm/v6"))
    assert found.manifest.digest == v6.digest


def test_a_digest_pins_and_is_verified(server, client):
    good, evil = image(), image(making.tar_of({"evil": b"1"}))
    server.add("library/app", "latest", good)
    name = f"library/app@{good.digest}"
    assert client().resolve(server, name, AMD64).digest == good.digest
    server.on("/manifests/", body(evil.raw, Content_Type=OCI_MANIFEST))
    with pytest.raises(InvalidImage, match=f"not {good.digest}"):
        client().resolve(server, name, AMD64)


def test_a_wrong_docker_content_digest_is_refused(server, client):
    made = image()
    answer = body(made.raw, Content_Type=OCI_MANIFEST, Docker_Content_Digest="sha256:" + "0" * 64)
    server.on("/manifests/", answer)
    with pytest.raises(InvalidImage, match="Docker-Content-Digest"):
        client().resolve(server, platform=AMD64)


def test_a_child_of_another_size_or_kind_is_refused(server, client):
    amd = image()
    for change, text in (
        ({"size": len(amd.raw) + 1}, f"{len(amd.raw)} bytes, not {len(amd.raw) + 1}"),
        ({"size": len(amd.raw) - 1}, "is larger than"),
        ({"mediaType": DOCKER_MANIFEST}, "its index says"),
        ({"mediaType": OCI_INDEX}, "its index says"),
    ):
        server.manifests.clear()
        server.add("library/app", "latest", amd)
        entry = {**amd.entry(), "platform": on("amd64"), **change}
        server.add("library/app", "latest", index([entry]))
        with pytest.raises((InvalidImage, RegistryError), match=text):
            client().resolve(server, platform=AMD64)


def raw_manifest(value, media_type=OCI_MANIFEST):
    return body(json.dumps(value).encode(), Content_Type=media_type)


GOOD = json.loads(image().raw)
ATTACKS = [
    ({**GOOD, "manifests": []}, OCI_MANIFEST, "ambiguous"),
    ({**GOOD, "mediaType": OCI_INDEX, "manifests": []}, OCI_INDEX, "ambiguous"),
    (GOOD, DOCKER_MANIFEST, "ambiguous: it came as"),
    (GOOD, "text/html; charset=utf-8", "ambiguous"),
    ({"schemaVersion": 1, "fsLayers": []}, "", "schema 1"),
    ({**GOOD, "layers": GOOD["layers"] * 513}, OCI_MANIFEST, "513 layers"),
    ({**GOOD, "config": {**GOOD["config"], "size": 1 << 40}}, OCI_MANIFEST, "its config has"),
    ({**GOOD, "layers": [{**GOOD["layers"][0], "size": 1 << 62}]}, OCI_MANIFEST, "layer 1 has"),
    ({**GOOD, "layers": []}, OCI_MANIFEST, "lists 1 layers, its manifest 0"),
]


@pytest.mark.parametrize(("value", "media_type", "text"), ATTACKS, ids=range(len(ATTACKS)))
def test_manifests_that_attack_are_refused_in_one_line(server, client, value, media_type, text):
    server.add("library/app", "latest", image())
    server.on("/manifests/", raw_manifest(value, media_type))
    mine = client()
    with pytest.raises(InvalidImage, match=text) as caught:
        mine.resolve(server, platform=AMD64)
    assert "\n" not in str(caught.value)
    # a good pull of the same name afterwards works
    assert mine.resolve(server, platform=AMD64).digest == image().digest


@pytest.mark.parametrize("claimed", [True, False])
def test_a_manifest_bomb_is_not_read(server, client, claimed):
    """A terabyte is claimed, or a body goes on for ever: 4 MiB are read at most."""
    sent = []

    def bomb(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", OCI_MANIFEST)
        if claimed:
            handler.send_header("Content-Length", str(1 << 40))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for _ in range(1000):
            handler.wfile.write(b" " * (1 << 16))
            sent.append(1 << 16)

    server.on("/manifests/", bomb)
    with pytest.raises(RegistryError, match="is larger than 4194304 bytes"):
        client().resolve(server, platform=AMD64)
    assert sum(sent) < 32 << 20  # what fits into sockets' buffers


def test_a_compressed_body_is_not_unpacked(server, client):
    bomb = gzip.compress(bytes(64 << 20))
    server.on("/manifests/", body(bomb, Content_Type=OCI_MANIFEST, Content_Encoding="gzip"))
    with pytest.raises(InvalidImage, match="not UTF-8"):
        client().resolve(server, platform=AMD64)


def test_headers_without_end(server, client):
    def headers(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            handler.wfile.write(f"X-{number}: {'x' * 100}\r\n".encode())
        handler.wfile.flush()

    server.on("/manifests/", *[headers] * 4)
    with pytest.raises(RegistryError):
        client().resolve(server, platform=AMD64)


def test_the_configs_bytes_are_verified(server, client, app):
    server.add("library/app", "latest", app)
    name = app.parsed.config.digest
    server.on(f"GET .*/blobs/{name}", body(bytes(app.parsed.config.size)))
    with pytest.raises(InvalidImage, match=f"not {name}"):
        client().resolve(server)


def test_a_helm_chart_is_no_image(server, client):
    config = b"{}"
    raw = document(
        {
            "schemaVersion": 2,
            "config": described(config, "application/vnd.cncf.helm.config.v1+json"),
            "layers": [],
        }
    )
    server.add("library/app", "latest", Made(raw, OCI_MANIFEST, {digest(config): config}))
    with pytest.raises(InvalidImage, match=r"is no container image: its config is .*helm"):
        client().resolve(server, platform=AMD64)


def test_urls_of_a_layer_are_not_asked(server, serve, client):
    trap = serve()
    tar = making.tar_of({"a": b"1"})
    packed = gzip.compress(tar, 1, mtime=0)
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    entry = described(packed, foreign, urls=[f"{trap.base}/layer", "http://169.254.169.254/x"])
    made = image(tar, layers=[entry])
    server.add("library/app", "latest", made)
    found = client().resolve(server, platform=AMD64)
    client().blob(server, found.manifest.layers[0])
    assert trap.log == []


def test_mirrors_are_asked_in_their_order_and_then_the_registry(serve, client):
    made = image()
    first, second, real = serve(), serve(), serve()
    second.add("cache/library/app", "latest", made)
    real.add("library/app", "latest", made)
    mirrors = {real.host: [first.base, f"{second.base}/cache/"]}
    mine = client(mirrors=mirrors)
    assert mine.resolve(real, platform=AMD64).digest == made.digest
    assert first.log  # 404 there
    assert real.log == []
    second.on(".", *[status(404)] * 9)
    assert mine.resolve(real, platform=AMD64).digest == made.digest
    assert real.log


def test_a_mirror_that_is_down_is_asked_once(serve, client, app, layer):
    dead, real = serve(), serve()
    real.add("library/app", "latest", app)
    dead.on(".", *[status(503)] * 50)
    mine = client(mirrors={real.host: [dead.base]})
    mine.resolve(real)
    asked = len(dead.log)
    assert asked == 2
    assert mine.blob(real, layer).data == app.blobs[layer.digest]
    assert len(dead.log) == asked
    assert "the next server is asked" in mine.lines[-1]


def test_a_mirror_cannot_change_a_byte(serve, client, app, layer):
    evil, real = serve(), serve()
    real.add("library/app", "latest", app)
    evil.add("library/app", "latest", app)
    evil.blobs[layer.digest] = bytes(layer.size)
    mine = client(mirrors={real.host: [evil.base]})
    mine.resolve(real)
    sink = mine.blob(real, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 1
    evil.manifests["library/app", app.digest] = (OCI_MANIFEST, image(architecture="arm64").raw)
    assert mine.resolve(real, f"library/app@{app.digest}").digest == app.digest


def test_credentials_of_a_registry_do_not_go_to_its_mirror(serve, client, login, app):
    mirror, real = serve(auth="basic"), serve(auth="basic")
    real.add("library/app", "latest", app)
    mine = client(environ=login(real), mirrors={real.host: [mirror.base]})
    assert mine.resolve(real).digest == app.digest
    assert not any(each.authorization for each in mirror.log)


def test_docker_hub_through_a_mirror(serve, client, app):
    mirror = serve()
    mirror.add("library/app", "latest", app)
    mine = client(mirrors={"docker.io": [mirror.base]})
    assert mine.registry.resolve(parse_reference("app")).digest == app.digest


def test_images_that_name_nothing_known(server, client):
    made = image(layers=[described(b"x", f"{OCI_LAYER}+lz4")])
    server.add("library/app", "latest", made)
    with pytest.raises(InvalidImage, match=r"layer 1 is .*lz4, which cannot be unpacked"):
        client().resolve(server, platform=AMD64)
    assert OCI_CONFIG in made.raw.decode()
