"""Who gets credentials and tokens, and who never does."""

from __future__ import annotations

import threading

import pytest

from pytest_sandbox.errors import Blame, RegistryError
from pytest_sandbox.oci.credentials import Credentials
from tests.oci.registry.scripted import (
    Scripted,
    body,
    cut,
    redirect,
    status,
    then,
    usual,
)

BLOB = "GET .*/blobs/"


@pytest.fixture
def locked(serve, app):
    """Starts a server that has the app and wants to be authenticated to."""

    def start(**options):
        server = serve(**options)
        server.add("library/app", "latest", app)
        return server

    return start


def sent_to(server):
    """Every text in which a secret could have come to a server."""
    return "\n".join(f"{each} {each.headers} {each.body!r}" for each in server.log)


def test_basic(locked, client, login, app):
    server = locked(auth="basic")
    assert client(environ=login(server)).resolve(server).digest == app.digest
    manifests = server.requests("/manifests/")
    assert manifests[0].authorization == ""  # nothing before it is asked for
    assert manifests[1].authorization.startswith("Basic ")
    assert len(manifests) == 2


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_wrong_password_is_said_with_its_source_and_without_itself(
    locked, client, login, auth, tmp_path
):
    server = locked(auth=auth)
    environ = login(server, username="me", password="falsch-geheim")
    with pytest.raises(RegistryError, match="answers 401") as caught:
        client(environ=environ).resolve(server)
    assert caught.value.blame is Blame.UPSTREAM
    assert str(tmp_path / "config.json") in caught.value.what
    assert "falsch" not in repr(caught.value) + str(caught.value)
    assert len(server.requests()) < 6


def test_without_credentials_the_error_says_how_to_log_in(locked, client):
    server = locked(auth="basic")
    with pytest.raises(RegistryError, match="no credentials for") as caught:
        client().resolve(server)
    assert f"docker login {server.host}" in caught.value.next_step


def test_a_token_is_asked_for_with_the_repositorys_scope(locked, client, login, app):
    server = locked(auth="token")
    assert client(environ=login(server)).resolve(server).digest == app.digest
    (asked,) = server.requests("/token")
    assert asked.authorization.startswith("Basic ")
    assert "scope=repository%3Alibrary%2Fapp%3Apull&" in asked.path
    assert "service=scripted" in asked.path
    assert all(
        each.authorization.startswith("Bearer token-") for each in server.requests("/blobs/")
    )


def test_anonymous_tokens_need_no_credentials(locked, client, app):
    server = locked(auth="token")
    server.anonymous = True
    assert client().resolve(server).digest == app.digest
    assert server.requests("/token")[0].authorization == ""


def test_tokens_are_kept_by_scope(locked, client, login, app, layer):
    server = locked(auth="token")
    server.add("library/other", "latest", app)
    mine = client(environ=login(server))
    mine.resolve(server)
    mine.blob(server, layer)
    mine.resolve(server)
    assert len(server.requests("/token")) == 1
    mine.resolve(server, "library/other:latest")
    assert len(server.requests("/token")) == 2


def test_threads_share_one_token(locked, client, login, layer):
    server = locked(auth="token")
    mine = client(environ=login(server))
    threads = [threading.Thread(target=mine.blob, args=(server, layer)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests("/token")) == 1
    good = [each for each in server.requests(BLOB) if each.authorization]
    assert len(good) >= 6


def test_a_token_that_dies_in_mid_pull_is_replaced(locked, client, login, app, layer):
    server = locked(auth="token")
    mine = client(environ=login(server))
    mine.resolve(server)

    def expire(handler):
        handler.scripted.expire()

    server.on(BLOB, then(cut(1000), expire))
    sink = mine.blob(server, layer)
    assert sink.data == app.blobs[layer.digest]
    assert sink.restarts == 0
    assert len(server.requests("/token")) == 2
    refused, resumed = server.requests(BLOB)[-2:]
    assert refused.headers["Range"] == resumed.headers["Range"] == "bytes=1000-"
    assert refused.authorization != resumed.authorization
    assert mine.waits == [1.0]  # for the cut; a new token is no retry


def test_a_token_is_not_used_after_its_time(locked, client, login, layer):
    server = locked(auth="token")
    server.lifetime = 0.05
    mine = client(environ=login(server))
    mine.resolve(server)
    threading.Event().wait(0.1)
    mine.blob(server, layer)
    assert len(server.requests("/token")) >= 2
    assert server.requests(BLOB)[-1].authorization != server.requests("/manif")[-1].authorization


@pytest.mark.parametrize("lifetime", [-5, 0, "soon", 1e308, 10**400, True, []])
def test_an_odd_lifetime_does_no_harm(locked, client, login, app, lifetime):
    server = locked(auth="token")
    server.lifetime = lifetime
    assert client(environ=login(server)).resolve(server).digest == app.digest


def test_an_identity_token_is_exchanged_by_post(locked, client, login, app):
    server = locked(auth="token")
    server.identity = "geheim-refresh"
    mine = client(environ=login(server, identitytoken="geheim-refresh"))
    assert mine.resolve(server).digest == app.digest
    (asked,) = server.requests("/token")
    assert asked.method == "POST"
    assert b"grant_type=refresh_token" in asked.body
    assert "geheim" not in asked.path
    assert asked.authorization == ""


def test_an_identity_token_does_not_follow_a_redirect(locked, serve, client, login):
    server, other = locked(auth="token"), serve()
    server.on("POST /token", redirect(f"{other.base}/token"))
    mine = client(environ=login(server, identitytoken="geheim-refresh"))
    with pytest.raises(RegistryError, match="answers 307"):
        mine.resolve(server)
    assert other.log == []


def test_a_registry_token_is_sent_as_it_is(locked, client, login, app):
    server = locked(auth="token")
    server.tokens.add("given")
    assert client(environ=login(server, registrytoken="given")).resolve(server).digest == app.digest
    assert server.requests("/token") == []


def test_a_redirect_to_another_origin_gets_no_authorization(locked, client, login, app, layer):
    server, store = locked(auth="token"), locked()
    server.on(BLOB, usual, redirect(f"{store.base}/v2/x/blobs/{layer.digest}?sig=geheim"))
    mine = client(environ=login(server))
    mine.resolve(server)
    assert mine.blob(server, layer).data == app.blobs[layer.digest]
    (asked,) = store.log
    assert asked.authorization == ""
    assert "Bearer" not in sent_to(store)


def test_another_name_of_the_same_server_is_another_origin(locked, client, login, app, layer):
    server = locked(auth="basic")
    port = server.host.rpartition(":")[2]
    mine = client(environ=login(server))
    mine.resolve(server)
    server.on(BLOB, redirect(f"http://localhost:{port}/v2/library/app/blobs/{layer.digest}"))
    with pytest.raises(RegistryError, match="answers 401"):
        mine.blob(server, layer)
    last = server.requests(BLOB)[-1]
    assert last.headers["Host"].startswith("localhost")
    assert last.authorization == ""
    assert app.digest


def test_credentials_do_not_come_back_once_a_redirect_has_left(locked, serve, client, login, layer):
    server, other = locked(auth="basic"), serve()
    mine = client(environ=login(server))
    mine.resolve(server)
    home = f"{server.base}/v2/library/app/blobs/{layer.digest}"
    server.on(BLOB, redirect(f"{other.base}/away"))
    other.on("GET /away", redirect(home))
    with pytest.raises(RegistryError, match="answers 401"):
        mine.blob(server, layer)
    assert [bool(each.authorization) for each in server.requests(BLOB)[-2:]] == [True, False]


def test_a_challenge_of_the_redirects_target_is_not_answered(locked, serve, client, login, layer):
    server, other = locked(), serve(auth="basic")
    mine = client(environ=login(server, other))
    server.on(BLOB, redirect(f"{other.base}/v2/x/blobs/{layer.digest}"))
    with pytest.raises(RegistryError, match="answers 401"):
        mine.blob(server, layer)
    assert not any(each.authorization for each in other.log)


def test_a_realm_on_another_server_gets_no_credentials(locked, serve, client, login):
    thief = serve()
    server = locked(auth="token", realm=f"{thief.base}/token")
    with pytest.raises(RegistryError, match="were not sent to") as caught:
        client(environ=login(server)).resolve(server)
    assert thief.base in caught.value.what
    assert thief.base in caught.value.next_step
    assert thief.log
    assert not any(each.authorization for each in thief.log)
    assert "geheim" not in sent_to(thief)
    assert "account" not in sent_to(thief)


def test_a_realm_on_another_server_gets_no_identity_token(locked, serve, client, login):
    thief = serve()
    server = locked(auth="token", realm=f"{thief.base}/token")
    with pytest.raises(RegistryError):
        client(environ=login(server, identitytoken="geheim-refresh")).resolve(server)
    assert "geheim" not in sent_to(thief)
    assert all(each.method == "GET" for each in thief.log)


def test_a_listed_realm_gets_them(locked, serve, client, login, app):
    helper = serve()
    server = locked(auth="token", realm=f"{helper.base}/token")
    helper.tokens = server.tokens
    mine = client(environ=login(server), realms={server.host: [helper.base]})
    assert mine.resolve(server).digest == app.digest
    assert helper.log[0].authorization.startswith("Basic ")


@pytest.mark.parametrize(
    ("realm", "text"),
    [
        ("http://192.0.2.1/token", "plain http from another machine"),
        ("http://auth.example/token", "plain http from another machine"),
        ("https://169.254.169.254/token", "link-local or metadata"),
        ("file:///etc/passwd", "no https address"),
        ("https://me:pw@auth.example/t", "carries a user name"),
        ("/token", "no https address"),
    ],
)
def test_realms_that_are_not_asked_at_all(locked, client, login, realm, text):
    server = locked(auth="token", realm=realm)
    with pytest.raises(RegistryError, match=text) as caught:
        client(environ=login(server)).resolve(server)
    assert "geheim" not in str(caught.value)
    assert "pw@" not in str(caught.value)


def test_a_redirect_of_the_realm_loses_the_credentials(locked, serve, client, login):
    server, thief = locked(auth="token"), serve()
    server.on("GET /token", redirect(f"{thief.base}/token"))
    with pytest.raises(RegistryError):
        client(environ=login(server)).resolve(server)
    assert thief.log
    assert not any(each.authorization for each in thief.log)


BAD_TOKENS = [
    (b'{"token": "a\\r\\nX-Injected: 1"}', "no token that can be sent"),
    (b'{"token": "with space"}', "no token that can be sent"),
    (b'{"token": 5}', "no token that can be sent"),
    (b"{}", "no token that can be sent"),
    (b"[]", "is a JSON list"),
    (b"<html>", "no JSON"),
    (b'{"token": "' + b"x" * 70_000 + b'"}', "no token that can be sent"),
    (b'{"token": "' + b"x" * 300_000 + b'"}', "the token is larger than"),
]


@pytest.mark.parametrize(("answer", "text"), BAD_TOKENS, ids=range(len(BAD_TOKENS)))
def test_tokens_that_are_none(locked, client, login, answer, text):
    server = locked(auth="token")
    server.on("GET /token", body(answer))
    with pytest.raises(RegistryError, match=text):
        client(environ=login(server)).resolve(server)


def test_a_token_server_that_limits_is_waited_for(locked, client, login, app):
    server = locked(auth="token")
    server.on("GET /token", status(429, Retry_After="3"))
    mine = client(environ=login(server))
    assert mine.resolve(server).digest == app.digest
    assert mine.waits == [3.0]


def test_a_server_that_always_says_401_is_asked_twice(locked, client, login):
    server = locked(auth="token")
    challenge = f'Bearer realm="{server.realm}",service="s"'
    server.on("/manifests/", *[status(401, WWW_Authenticate=challenge)] * 20)
    with pytest.raises(RegistryError, match="answers 401"):
        client(environ=login(server)).resolve(server)
    assert len(server.requests("/manifests/")) == 2


@pytest.mark.parametrize(
    "challenge", ["", "Negotiate", "Bearer", "Digest realm=x", '"', "Bearer x"]
)
def test_challenges_that_cannot_be_met(locked, client, login, challenge):
    server = locked()
    server.on("/manifests/", status(401, WWW_Authenticate=challenge))
    with pytest.raises(RegistryError, match="answers 401"):
        client(environ=login(server)).resolve(server)


def test_a_secret_that_the_server_echoes_is_masked(locked, client, login):
    server = locked(auth="basic")
    text = b'{"errors": [{"code": "X", "message": "you sent geheim, and bWU6Z2VoZWlt"}]}'
    server.on("/manifests/", usual, status(400, text))
    with pytest.raises(RegistryError) as caught:
        client(environ=login(server)).resolve(server)
    assert "geheim" not in str(caught.value)
    assert "bWU6Z2VoZWlt" not in str(caught.value)
    assert "***" in caught.value.what


def test_credentials_of_one_registry_are_not_for_another(locked, client, login):
    mine_server, other = locked(auth="basic"), locked(auth="basic")
    with pytest.raises(RegistryError, match="no credentials for"):
        client(environ=login(mine_server)).resolve(other)
    assert not any(each.authorization for each in other.log)


def test_https_with_its_own_ca_and_a_token(locked, client, login, app, tls):
    context, ca = tls
    server = locked(auth="token", context=context)
    environ = {**login(server), "SSL_CERT_FILE": str(ca)}
    found = client(environ=environ).resolve(server)
    assert found.digest == app.digest
    assert server.requests("/token")[0].authorization.startswith("Basic ")


def test_an_untrusted_certificate_is_the_hosts_matter_and_never_plain_http(
    locked, client, login, tls
):
    server = locked(auth="basic", context=tls[0])
    with pytest.raises(RegistryError) as caught:
        client(environ=login(server), timeout=1.0).resolve(server)
    assert caught.value.blame in (Blame.HOST, Blame.NETWORK)
    assert not any(each.authorization for each in server.log)


def test_plain_http_is_for_loopback_and_for_listed_registries(client, monkeypatch, app):
    """A name that is not loopback's, led to loopback: only plain http if it is listed."""
    import socket

    real = socket.getaddrinfo

    def lead(host, *rest, **more):
        return real("127.0.0.1" if host == "registry.example" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lead)
    with Scripted() as server:
        server.add("library/app", "latest", app)
        server.host = server.host.replace("127.0.0.1", "registry.example")
        mine = client(insecure=[server.host])
        assert mine.resolve(server).digest == app.digest
        asked = len(server.log)
        with pytest.raises(RegistryError):
            client(timeout=0.5).resolve(server)
        assert len(server.log) == asked


def test_a_helper_answers_for_a_registry(locked, client, tmp_path, app):
    server = locked(auth="basic")
    helper = tmp_path / "docker-credential-own"
    helper.write_text('#!/bin/sh\necho "{\\"Username\\": \\"me\\", \\"Secret\\": \\"geheim\\"}"\n')
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "own"}')
    environ = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/bin:/usr/bin"}
    mine = client(environ=environ, credentials=Credentials(environ))
    assert mine.resolve(server).digest == app.digest
