"""Pushing to a registry that does what a test tells it."""

from __future__ import annotations

import io

import pytest

from pytest_sandbox.errors import InvalidImage, RegistryError
from pytest_sandbox.oci.push import push_blob, push_image, push_manifest
from pytest_sandbox.oci.reference import parse_reference
from tests.oci import making
from tests.oci.making import image, index, on
from tests.oci.registry.scripted import cut, redirect, status, then, usual


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def made():
    """An image with one layer of 300 KB that gzip makes no smaller."""
    import random

    return image(making.tar_of({"data": random.Random(4).randbytes(300_000)}))


@pytest.fixture
def push(client):
    """Pushes a made image; options go to the client or to push_image."""

    def push(server, made, name="me/tool:1", *, environ=None, **options):
        mine = client(environ=environ or {})
        below = {each.digest: each.parsed for each in made.manifests}
        digest = push_image(
            mine.registry,
            parse_reference(f"{server.host}/{name}"),
            made.parsed,
            lambda blob: io.BytesIO(made.blobs[blob.digest]),
            child=lambda entry: below[entry.digest],
            **options,
        )
        assert digest == made.digest
        return mine

    return push


def sent_bodies(server):
    return sum(len(each.body) for each in server.requests("(PATCH|PUT) .*/blobs/"))


def test_blobs_go_first_and_the_tag_last(server, push, made, client):
    push(server, made)
    assert server.blobs == made.blobs
    assert server.manifests["me/tool", "1"] == (made.media_type, made.raw)
    assert str(server.log[-1]) == "PUT /v2/me/tool/manifests/1"
    assert client().resolve(server, "me/tool:1").digest == made.digest


def test_what_is_there_is_not_sent_again(server, push, made):
    push(server, made)
    size = sent_bodies(server)
    push(server, made, "me/tool:2")
    assert sent_bodies(server) == size


def test_blobs_of_another_repository_are_mounted(server, push, made):
    server.blobs.update(made.blobs)
    server.on("HEAD ", *[status(404)] * 2)
    push(server, made, "me/copy:1", mount_from=["me/tool", "me/copy"])
    asked = server.requests("POST")
    assert len(asked) == 2
    assert all("mount=sha256%3A" in each.path and "from=me%2Ftool" in each.path for each in asked)
    assert sent_bodies(server) == 0


def test_a_mount_that_is_refused_becomes_an_upload(server, push, made):
    push(server, made, mount_from=["me/other"])
    assert server.blobs == made.blobs
    assert len(server.requests("POST")) == 2  # the sessions that the mounts opened are used


def test_a_mount_that_is_denied_becomes_an_upload(serve, push, made, login):
    server = serve(auth="basic")
    server.on("POST .*mount=", *[status(403)] * 2)
    push(server, made, environ=login(server), mount_from=["secret/base"])
    assert server.blobs == made.blobs


def test_large_blobs_go_in_chunks(server, push, made):
    push(server, made, chunk=100_000)
    layer = made.parsed.layers[0]
    patches = server.requests("PATCH")
    assert [each.headers["Content-Range"] for each in patches] == [
        "0-99999",
        "100000-199999",
        "200000-299999",
        f"300000-{layer.size - 1}",
    ]
    assert server.blobs == made.blobs


def test_the_least_chunk_of_a_server_is_kept(server, push, made):
    def wide(handler):
        give = handler.give
        handler.give = lambda number, body=b"", headers=None: give(
            number, body, {**(headers or {}), "OCI-Chunk-Min-Length": "250000"}
        )
        handler.usual()
        handler.give = give

    server.on("POST", wide, wide)
    push(server, made, chunk=100_000)
    assert server.requests("PATCH")[0].headers["Content-Range"] == "0-249999"
    assert server.blobs == made.blobs


def test_a_chunk_that_fails_goes_on_where_the_server_is(server, push, made):
    server.on("PATCH", usual, status(500), then(usual, cut(0)))
    mine = push(server, made, chunk=100_000)
    assert server.blobs == made.blobs
    assert mine.waits[:1] == [1.0]
    assert server.requests("GET .*/uploads/")
    layer = made.parsed.layers[0]
    assert sent_bodies(server) < 2 * layer.size


def test_an_upload_that_is_lost_begins_anew(server, push, made):
    def forget(handler):
        handler.scripted.uploads.clear()
        handler.give(500)

    server.on("PATCH", usual, forget)
    server.on("GET .*/uploads/", status(404))
    push(server, made, chunk=100_000)
    assert server.blobs == made.blobs


@pytest.mark.parametrize("number", [404, 405, 413])
def test_a_server_without_chunks_gets_one_piece(server, push, made, number):
    server.on("PATCH", status(number))
    push(server, made, chunk=100_000)
    assert server.blobs == made.blobs
    assert len(server.requests("PATCH")) == 1


def test_a_failing_put_is_tried_again(server, push, made):
    server.on("PUT .*/blobs/", status(503), status(503))
    server.on("PUT .*/manifests/", status(502))
    push(server, made)
    assert server.blobs == made.blobs


def test_an_index_goes_after_what_it_names(server, push, client):
    amd, arm = image(), image(making.tar_of({"arm": b"1"}), architecture="arm64")
    top = index([(amd, on("amd64")), (arm, on("arm64"))])
    push(server, top)
    puts = [each.path for each in server.requests("PUT .*/manifests/")]
    assert puts == [
        f"/v2/me/tool/manifests/{amd.digest}",
        f"/v2/me/tool/manifests/{arm.digest}",
        "/v2/me/tool/manifests/1",
    ]


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_push_with_authentication(serve, push, made, login, auth):
    server = serve(auth=auth)
    push(server, made, environ=login(server), mount_from=["me/base"])
    assert server.blobs == made.blobs
    if auth == "token":
        scopes = " ".join(each.path for each in server.requests("/token"))
        assert "repository%3Ame%2Ftool%3Apull%2Cpush" in scopes
        assert "repository%3Ame%2Fbase%3Apull" in scopes


def test_a_token_that_dies_in_mid_push_is_replaced(serve, push, made, login):
    server = serve(auth="token")
    server.on("PATCH", usual, then(lambda handler: handler.scripted.expire(), usual))
    push(server, made, environ=login(server), chunk=100_000)
    assert server.blobs == made.blobs


def test_an_upload_elsewhere_gets_no_authorization(serve, client, made, login):
    server, other = serve(auth="basic"), serve()
    other.uploads["away"] = b""
    away = f"{other.base}/v2/me/tool/blobs/uploads/away?sig=1"
    server.on("POST", status(202, Location=away))
    layer = made.parsed.layers[0]
    mine = client(environ=login(server))
    reference = parse_reference(f"{server.host}/me/tool:1")
    source = lambda blob: io.BytesIO(made.blobs[blob.digest])  # noqa: E731
    assert push_blob(mine.registry, reference, layer, source, chunk=100_000) == "sent"
    assert other.blobs == {layer.digest: made.blobs[layer.digest]}
    assert len(other.requests("PATCH")) == 4
    assert not any(each.authorization for each in other.log)
    assert server.requests("POST")[0].authorization


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("http://192.0.2.1/upload", "plain http from another machine"),
        ("https://169.254.169.254/upload", "link-local or metadata"),
        ("file:///tmp/x", "no https address"),
        ("https://me:geheim@192.0.2.1/x", "carries a user name"),
        ("", "does not say where"),
    ],
)
def test_where_an_upload_may_not_go_on(server, push, made, location, text):
    server.on("POST", *[status(202, Location=location)] * 9)
    with pytest.raises(RegistryError, match=text) as caught:
        push(server, made)
    assert "geheim" not in str(caught.value)


def test_a_redirected_upload_keeps_its_method_and_loses_its_credentials(serve, push, login, client):
    server, other = serve(auth="basic"), serve()
    made = image()
    other.uploads["s"] = b""
    server.on("PUT .*/blobs/", usual, redirect(f"{other.base}/v2/x/blobs/uploads/s?digest=x"))
    with pytest.raises(RegistryError, match="400"):
        push(server, made, environ=login(server))
    (asked,) = other.log
    assert asked.method == "PUT"
    assert asked.body
    assert asked.authorization == ""


def test_a_denied_push_says_so(serve, push, made, login):
    server = serve(auth="basic")
    server.on("POST", usual, *[status(403)] * 9)
    with pytest.raises(RegistryError, match="answers 403") as caught:
        push(server, made, environ=login(server))
    assert "rights" in caught.value.next_step


def test_a_source_that_is_too_short_is_refused(server, client, made):
    mine = client()
    layer = made.parsed.layers[0]
    with pytest.raises(InvalidImage, match="ends after 10 bytes here"):
        push_blob(
            mine.registry,
            parse_reference(f"{server.host}/me/tool:1"),
            layer,
            lambda _: io.BytesIO(b"0123456789"),
        )


def test_a_server_that_stores_something_else_is_caught(server, client, made):
    server.on("PUT", status(201, Docker_Content_Digest="sha256:" + "0" * 64))
    with pytest.raises(RegistryError, match="stored sha256:0000"):
        push_manifest(client().registry, parse_reference(f"{server.host}/a"), made.parsed, tag="1")
