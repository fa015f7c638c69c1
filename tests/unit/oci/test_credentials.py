"""Where credentials are found, and that they are never shown."""

from __future__ import annotations

import base64
import json
import time

import pytest

from pytest_sandbox.errors import RegistryError
from pytest_sandbox.oci.credentials import Credential, Credentials

SECRET = "geheim:pass wörd"


def auth(user="me", password=SECRET):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path):
    """A folder with the usual places below it, and the environment that names them."""

    class Home:
        environ = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}  # noqa: RUF012

        def write(self, name, value):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value if isinstance(value, str) else json.dumps(value))
            return path

        def helper(self, name, script):
            path = self.write(f"bin/docker-credential-{name}", f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

        def find(self, registry, repository="", **more):
            environ = {**self.environ, **more}
            return Credentials(environ, timeout=1.0).find(registry, repository)

    return Home()


def test_nothing_is_found_where_nothing_is(home):
    assert home.find("ghcr.io") is None
    assert Credentials({}).find("ghcr.io") is None


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        (".docker/config.json", {}),
        ("elsewhere/config.json", {"DOCKER_CONFIG": "elsewhere"}),
        ("mine.json", {"REGISTRY_AUTH_FILE": "mine.json"}),
        ("run/containers/auth.json", {"XDG_RUNTIME_DIR": "run"}),
        (".config/containers/auth.json", {}),
        ("etc/containers/auth.json", {"XDG_CONFIG_HOME": "etc"}),
    ],
)
def test_each_place_is_looked_at(home, tmp_path, name, variables):
    path = home.write(name, {"auths": {"ghcr.io": auth()}})
    more = {name: f"{tmp_path}/{value}" for name, value in variables.items()}
    found = home.find("ghcr.io", **more)
    assert (found.username, found.password) == ("me", SECRET)
    assert str(path) in found.source


def test_the_first_place_wins_and_DOCKER_CONFIG_replaces_dockers_own(home, tmp_path):
    home.write(".docker/config.json", {"auths": {"a.io": auth("docker"), "b.io": auth("docker")}})
    home.write("other/config.json", {"auths": {"a.io": auth("other")}})
    home.write("file.json", {"auths": {"a.io": auth("file"), "c.io": auth("file")}})
    home.write(".config/containers/auth.json", {"auths": {"c.io": auth("podman")}})
    more = {"DOCKER_CONFIG": f"{tmp_path}/other", "REGISTRY_AUTH_FILE": f"{tmp_path}/file.json"}
    assert home.find("a.io", **more).username == "other"
    assert home.find("b.io", **more) is None
    assert home.find("c.io", **more).username == "file"
    assert home.find("a.io").username == "docker"
    assert home.find("c.io").username == "podman"


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("http://localhost:5000/", "localhost:5000"),
        ("GHCR.io", "ghcr.io"),
    ],
)
def test_keys_are_spelled_in_many_ways(home, key, registry):
    home.write(".docker/config.json", {"auths": {key: auth()}})
    assert home.find(registry, "a/b").username == "me"


@pytest.mark.parametrize("other", ["ghcr.io.evil.example", "hcr.io", "ghcr.io:444", "evil.example"])
def test_credentials_are_for_the_exact_registry(home, other):
    home.write(".docker/config.json", {"auths": {"https://ghcr.io/v2/": auth()}})
    assert home.find(other) is None


def test_the_longest_key_of_a_repository_wins(home):
    auths = {
        "quay.io": auth("all"),
        "quay.io/team": auth("team"),
        "quay.io/team/tool": auth("tool"),
        "docker.io/library/debian": auth("debian"),
    }
    home.write(".config/containers/auth.json", {"auths": auths})
    assert home.find("quay.io", "team/tool").username == "tool"
    assert home.find("quay.io", "team/tool/sub").username == "tool"
    assert home.find("quay.io", "team/tools").username == "team"
    assert home.find("quay.io", "other").username == "all"
    assert home.find("docker.io", "library/debian").username == "debian"
    assert home.find("docker.io", "library/alpine") is None


def test_other_kinds_of_secrets(home):
    entries = {
        "a.io": {"identitytoken": "refresh"},
        "b.io": {"registrytoken": "bearer"},
        "c.io": {"username": "u", "password": "p"},
        "d.io": {},
        "e.io": auth("<token>", "refresh"),
    }
    home.write(".docker/config.json", {"auths": entries})
    assert home.find("a.io").identity_token == "refresh"
    assert home.find("b.io").registry_token == "bearer"
    assert home.find("c.io").basic == "Basic " + base64.b64encode(b"u:p").decode()
    assert home.find("d.io") is None
    assert home.find("e.io").identity_token == "refresh"


def test_a_helper_gets_the_server_on_its_stdin(home, tmp_path):
    home.helper(
        "mine",
        f'read server; echo "$1 $server" >> {tmp_path}/asked;'
        ' echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"s3\\"}"',
    )
    home.write(
        ".docker/config.json",
        {"credHelpers": {"ghcr.io": "mine"}, "auths": {"ghcr.io": auth("stale")}},
    )
    credentials = Credentials(home.environ)
    for _ in range(3):  # asked once
        found = credentials.find("ghcr.io")
    assert (found.username, found.password) == ("me", "s3")
    assert found.source == "docker-credential-mine"
    assert (tmp_path / "asked").read_text() == "get ghcr.io\n"


def test_a_store_answers_for_docker_hub_by_its_old_name(home):
    home.helper(
        "store",
        'read server; [ "$server" = https://index.docker.io/v1/ ] &&'
        ' echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"refresh\\"}" ||'
        ' { echo "credentials not found in native keychain"; exit 1; }',
    )
    home.write(".docker/config.json", {"credsStore": "store", "auths": {"b.io": auth("file")}})
    assert home.find("docker.io", "library/x").identity_token == "refresh"
    assert home.find("b.io").username == "file"
    assert home.find("c.io") is None


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (f"echo '{SECRET}'; echo '{SECRET}' >&2; exit 3", "ended with the status 3"),
        (f"echo '{SECRET}'", "printed no credential"),
        (f"echo '[\"{SECRET}\"]'", "printed no credential"),
        ("exec sleep 30", "has not answered in 1 s"),
    ],
)
def test_a_helper_that_fails_is_named_and_its_output_is_not_shown(home, script, text):
    home.helper("bad", script)
    home.write(".docker/config.json", {"credHelpers": {"ghcr.io": "bad"}})
    with pytest.raises(RegistryError, match=text) as caught:
        home.find("ghcr.io")
    assert "docker-credential-bad" in str(caught.value)
    assert "geheim" not in str(caught.value) + caught.value.details


def test_a_helper_may_leave_a_process_behind(home):
    home.helper("agent", 'sleep 3 & echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"s\\"}"')
    home.write(".docker/config.json", {"credHelpers": {"ghcr.io": "agent"}})
    started = time.monotonic()
    assert home.find("ghcr.io").username == "me"
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"credsStore": "../../bin/sh"}, "no name of a credential helper"),
        ({"credsStore": "nowhere"}, "docker-credential-nowhere, which is not in PATH"),
        ("{", "no JSON"),
        ({"auths": []}, ""),
        ({"auths": "x"}, "auths is no object"),
        ({"auths": {"ghcr.io": "x"}}, "is no object"),
        ({"auths": {"ghcr.io": {"auth": "%%geheim"}}}, "not base64"),
        ({"auths": {"ghcr.io": {"auth": base64.b64encode(b"geheim").decode()}}}, "no user"),
        ({"auths": {"ghcr.io": auth("me", "geheim\nX-Injected: 1")}}, "control characters"),
        ({"auths": {"ghcr.io": {"auth": 5}}}, "auth is no text"),
    ],
)
def test_a_broken_file_is_named_without_its_secrets(home, config, text):
    path = home.write(".docker/config.json", config)
    if not text:
        assert home.find("ghcr.io") is None
        return
    with pytest.raises(RegistryError, match=text) as caught:
        home.find("ghcr.io")
    assert str(path) in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_secret_is_in_no_repr():
    found = Credential("me", "geheim1", "geheim2", "geheim3", "here")
    assert "geheim" not in f"{found!r} {found}"
    assert "me" in repr(found)
    assert set(found.secrets()) > {"geheim1", "geheim2", "geheim3"}
