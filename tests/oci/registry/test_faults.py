"""Downloads from a registry that fails: retries, resume, wrong bytes, and what is never retried."""

from __future__ import annotations

import time

import pytest

from pytest_sandbox.errors import Blame, InvalidImage, RegistryError
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.retries import RetryRule
from tests.oci.registry.scripted import (
    body,
    cut,
    redirect,
    stall,
    status,
    then,
    usual,
)

BLOB = "GET .*/blobs/"


@pytest.fixture
def server(serve, app):
    server = serve()
    server.add("library/app", "latest", app)
    return server


def test_an_image_is_resolved_and_its_layer_verified(server, client, app, layer):
    mine = client()
    found = mine.resolve(server)
    assert found.manifest.raw == app.raw
    assert found.digest == app.digest
    assert found.config == app.blobs[app.parsed.config.digest]
    sink = mine.blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert mine.waits == []


def test_500_500_200_is_retried_with_growing_waits_that_are_shown(server, client, app, layer):
    server.on(BLOB, status(500), status(503))
    mine = client()
    assert mine.blob(server, layer).data == app.blobs[layer.digest]
    assert mine.waits == [1.0, 2.0]
    assert len(mine.lines) == 2
    assert "answers 503" in mine.lines[1]
    assert "try 3 of 4 in 2 s" in mine.lines[1]


def test_there_are_four_tries(server, client, layer):
    server.on(BLOB, *[status(502)] * 9)
    mine = client()
    with pytest.raises(RegistryError, match="answers 502") as caught:
        mine.blob(server, layer)
    assert caught.value.blame is Blame.NETWORK
    assert caught.value.status == 502
    assert len(server.requests(BLOB)) == 4
    assert mine.waits == [1.0, 2.0, 4.0]


def test_a_short_retry_after_is_waited_for(server, client, app, layer):
    server.on(BLOB, status(429, Retry_After="7"))
    mine = client()
    assert mine.blob(server, layer).data == app.blobs[layer.digest]
    assert mine.waits == [7.0]


def test_a_long_retry_after_is_an_error_that_names_it(server, client):
    server.on("GET .*/manifests/", status(429, Retry_After="3600"))
    mine = client()
    with pytest.raises(RegistryError, match=r"wait 3600 s \(Retry-After\).*at most 60 s") as caught:
        mine.resolve(server)
    assert caught.value.status == 429
    assert mine.waits == []


def test_all_waits_together_are_at_most_a_minute(server, client, layer):
    server.on(BLOB, *[status(429, Retry_After="25")] * 9)
    mine = client()
    with pytest.raises(RegistryError, match="at most 10 s"):
        mine.blob(server, layer)
    assert mine.waits == [25.0, 25.0]


@pytest.mark.parametrize("number", [400, 403, 404, 410, 418])
def test_other_4xx_are_not_retried(server, client, layer, number):
    server.on(BLOB, status(number))
    mine = client()
    with pytest.raises(RegistryError, match=f"answers {number}") as caught:
        mine.blob(server, layer)
    assert caught.value.blame is Blame.UPSTREAM
    assert len(server.requests(BLOB)) == 1
    assert mine.waits == []


def test_a_missing_tag_is_said_plainly(server, client):
    with pytest.raises(RegistryError, match="has no library/app:nope") as caught:
        client().resolve(server, "library/app:nope")
    assert caught.value.status == 404
    assert "check the name" in caught.value.next_step


def test_a_cut_blob_is_resumed_where_it_was_cut(server, client, app, layer):
    server.on(BLOB, cut(100_0), cut(200))
    mine = client()
    sink = mine.blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 0
    first, second, third = server.requests(BLOB)
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=1000-"
    assert second.headers["If-Range"] == '"etag-1"'
    assert third.headers["Range"] == "bytes=1200-"


def test_a_server_that_knows_no_ranges_starts_anew(server, client, app, layer):
    server.on(BLOB, cut(1000))
    server.ranges = False
    sink = client().blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 1


def test_without_a_strong_etag_nothing_is_resumed(server, client, app, layer):
    server.on(BLOB, cut(1000))
    server.etag = 'W/"weak"'
    sink = client().blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 1
    assert "Range" not in server.requests(BLOB)[1].headers


def test_a_changed_etag_starts_anew(server, client, app, layer):
    def change(handler):
        handler.scripted.etag = '"etag-2"'

    server.on(BLOB, cut(1000), then(change, usual))
    sink = client().blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 1
    assert server.requests(BLOB)[1].headers["If-Range"] == '"etag-1"'


def test_a_wrong_part_is_not_taken(server, client, app, layer):
    wrong = status(206, b"x" * 10, Content_Range="bytes 5-14/20", ETag='"etag-1"')
    server.on(BLOB, cut(1000), wrong)
    sink = client().blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 1


def test_416_starts_anew(server, client, app, layer):
    server.on(BLOB, cut(1000), status(416))
    sink = client().blob(server, layer)
    assert sink.data == app.blobs[layer.digest]


def test_a_mismatch_after_a_resume_starts_once_from_zero(server, client, app, layer):
    data = app.blobs[layer.digest]

    def other_half(handler):
        wrong = data[:1000] + bytes(len(data) - 1000)
        handler.bytes(wrong)

    server.on(BLOB, cut(1000), other_half)
    mine = client()
    sink = mine.blob(server, layer)
    assert sink.data == data
    assert sink.restarts == 1
    assert "fetched again from its start" in mine.lines[-1]
    assert "Range" not in server.requests(BLOB)[2].headers


def test_a_second_mismatch_is_final(server, client, app, layer):
    data = app.blobs[layer.digest]

    def wrong(handler):
        handler.bytes(data[:1000] + bytes(len(data) - 1000))

    server.on(BLOB, cut(1000), *[wrong] * 5)
    with pytest.raises(InvalidImage, match="has the digest"):
        client().blob(server, layer)
    assert len(server.requests(BLOB)) == 3


def test_a_wrong_digest_is_refused_at_once_and_names_both(server, client, app, layer):
    server.on(BLOB, body(bytes(layer.size)))
    with pytest.raises(InvalidImage, match=f"not {layer.digest}") as caught:
        client().blob(server, layer)
    assert caught.value.blame is Blame.UPSTREAM
    assert len(server.requests(BLOB)) == 1
    # and a good pull of the same name works afterwards
    assert client().blob(server, layer).data == app.blobs[layer.digest]


def test_a_wrong_length_is_refused_before_a_byte_is_taken(server, client, layer):
    server.on(BLOB, body(bytes(layer.size + 1)))
    mine = client()
    with pytest.raises(InvalidImage, match=f"{layer.size + 1} bytes, not {layer.size}"):
        mine.blob(server, layer)
    assert mine.waits == []


def test_a_body_without_a_length_is_cut_at_its_size(server, client, layer):
    def endless(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for _ in range(10_000):
            handler.wfile.write(bytes(1 << 16))

    server.on(BLOB, endless)
    started = time.monotonic()
    with pytest.raises(InvalidImage, match=f"more than {layer.size}"):
        client().blob(server, layer)
    assert time.monotonic() - started < 3


def test_a_truncated_blob_is_an_error_with_both_sizes(server, client, layer):
    def short(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b"x" * 50)
        handler.close_connection = True

    server.on(BLOB, *[short] * 4)
    with pytest.raises(RegistryError, match=f"ended after 50 of {layer.size} bytes"):
        client().blob(server, layer)


def test_a_stalled_body_is_given_up_and_resumed(server, client, app, layer):
    server.on(BLOB, stall(1000))
    mine = client(timeout=0.3)
    started = time.monotonic()
    sink = mine.blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert time.monotonic() - started < 3
    assert server.requests(BLOB)[1].headers["Range"] == "bytes=1000-"
    assert "no answer in time" in mine.lines[0]


def test_a_trickle_is_a_stall(server, client, app, layer):
    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(layer.size))
        handler.end_headers()
        handler.wfile.flush()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            if handler.scripted.released.wait(0.05):
                return

    server.on(BLOB, trickle)
    mine = client(timeout=0.4)
    assert mine.blob(server, layer).data == app.blobs[layer.digest]
    assert "stalled" in mine.lines[0]


def test_a_server_that_says_nothing_at_all_is_given_up(server, client):
    server.on("GET .*/manifests/", *[stall(0)] * 4)

    def mute(handler):
        handler.scripted.released.wait(60)
        handler.close_connection = True

    server.faults.clear()
    server.on("GET .*/manifests/", *[mute] * 4)
    mine = client(timeout=0.2)
    with pytest.raises(RegistryError, match="no answer in time") as caught:
        mine.resolve(server)
    assert caught.value.blame is Blame.NETWORK


def test_nobody_there(serve, client):
    server = serve()
    server.__exit__()
    mine = client(rule=RetryRule(tries=2, sleep=lambda _: None))
    with pytest.raises(RegistryError, match="connection refused") as caught:
        mine.resolve(server)
    assert caught.value.blame is Blame.NETWORK


def test_the_sinks_own_error_is_not_taken_for_the_networks(server, client, layer):
    class Full:
        def write(self, _):
            raise BrokenPipeError(32, "the reader is gone")

        def restart(self):
            raise AssertionError

    mine = client()
    reference = parse_reference(f"{server.host}/library/app")
    with pytest.raises(BrokenPipeError):
        mine.registry.blob(reference, layer, Full())
    assert len(server.requests(BLOB)) == 1


def test_more_than_ten_redirects_are_too_many(server, client, layer):
    server.on(BLOB, *[redirect(f"{server.base}/v2/a/blobs/sha256:{n}") for n in range(12)])
    with pytest.raises(RegistryError, match="more than 10 redirects"):
        client().blob(server, layer)
    assert len(server.requests(BLOB)) == 11


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("http://192.0.2.1/x", "plain http from another machine"),
        ("https://169.254.169.254/latest/meta-data", "link-local or metadata"),
        ("http://169.254.169.254/latest/meta-data", "plain http from another machine"),
        ("https://[fd00:ec2::254]/x", "link-local or metadata"),
        ("https://metadata.google.internal/x", "link-local or metadata"),
        ("https://0.0.0.0/x", "link-local or metadata"),
        ("file:///etc/passwd", "no https address"),
        ("ftp://192.0.2.1/x", "no https address"),
        ("https://user:geheim@192.0.2.1/x", "carries a user name"),
        ("https://exa mple/x", "no address"),
        ("gopher:x", "no https address"),
    ],
)
def test_where_a_redirect_may_not_lead(server, client, layer, location, text):
    for number in (301, 302, 303, 307, 308):
        server.on(BLOB, redirect(location, number))
        mine = client()
        with pytest.raises(RegistryError, match=text) as caught:
            mine.blob(server, layer)
        assert "geheim" not in str(caught.value)
        assert mine.waits == []


def test_the_servers_message_is_shown_without_control_characters(server, client):
    text = '{"errors": [{"code": "DENIED", "message": "no\\u001b[31m way\\r\\n::error::x"}]}'
    server.on("GET .*/manifests/", status(400, text.encode()))
    with pytest.raises(RegistryError, match="DENIED: no") as caught:
        client().resolve(server)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_page_of_any_size_is_bounded(server, client):
    server.on("GET .*/manifests/", status(404, b"x" * (8 << 20)))
    with pytest.raises(RegistryError):
        client().resolve(server)


def test_a_head_says_whether_there_is_something_newer(server, client, app):
    reference = parse_reference(f"{server.host}/library/app")
    assert client().registry.current_digest(reference) == app.digest
    assert [each.method for each in server.requests("/manifests/")] == ["HEAD"]


def test_where_head_says_nothing_get_is_asked(server, client, app):
    reference = parse_reference(f"{server.host}/library/app")
    server.on("HEAD .*/manifests/", status(405), status(200))
    mine = client()
    assert mine.registry.current_digest(reference) == app.digest
    assert mine.registry.current_digest(reference) == app.digest
    with pytest.raises(RegistryError, match="has no library/app:nope"):
        mine.registry.current_digest(parse_reference(f"{server.host}/library/app:nope"))
