"""The reference grammar and Docker Hub's normalisation."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.reference import Reference, normal_registry, parse_reference

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:trixie", "docker.io/library/debian:trixie", "debian:trixie"),
        ("me/tool", "docker.io/me/tool:latest", "me/tool:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("registry-1.docker.io/me/tool", "docker.io/me/tool:latest", "me/tool:latest"),
        ("docker.io/library/a", "docker.io/library/a:latest", "a:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
        ("ghcr.io/a/b/c", "ghcr.io/a/b/c:latest", "ghcr.io/a/b/c:latest"),
        ("GHCR.io/a", "ghcr.io/a:latest", "ghcr.io/a:latest"),
        ("Host/a", "Host/a:latest", "Host/a:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("10.0.0.5:5000/x/y", "10.0.0.5:5000/x/y:latest", "10.0.0.5:5000/x/y:latest"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}", f"a@{DIGEST}"),
        (f"a:1@{DIGEST}", f"docker.io/library/a:1@{DIGEST}", f"a:1@{DIGEST}"),
        ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest", "a__b/c--d.e_f:latest"),
        ("x:" + "T" * 128, "docker.io/library/x:" + "T" * 128, "x:" + "T" * 128),
    ],
)
def test_a_reference_has_one_canonical_form(text, canonical, familiar):
    found = parse_reference(text)
    assert (str(found), found.familiar) == (canonical, familiar)
    assert parse_reference(str(found)) == found
    assert parse_reference(found.familiar) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no name"),
        (":1", "no name"),
        ("Debian", "lower case"),
        ("ghcr.io/A", "lower case"),
        ("a..b", "no repository name"),
        ("a/../b", "no repository name"),
        ("a//b", "no repository name"),
        ("-a", "no repository name"),
        ("a___b", "no repository name"),
        ("a:", "no tag"),
        ("a:.x", "no tag"),
        ("a:" + "T" * 129, "no tag"),
        ("a:b c", "no tag"),
        ("a@sha256:abc", "no sha256 digest"),
        ("a@", "no sha256 digest"),
        ("a@sha256:" + "A1" * 32, "no sha256 digest"),
        ("a@md5:" + "a" * 32, "no sha256 digest"),
        ("host.example:99999/a", "no port"),
        ("host.example:0/a", "no port"),
        ("user@host.example/a", "no sha256 digest"),
        ("http://host.example/a", "no host name"),
        ("a\n", "no repository name"),
        ("é.example/a", "no host name"),
        ("a" * 64, "an image's id"),
        ("h.example/" + "a" * 250, "longer than 255"),
    ],
)
def test_what_is_no_reference_is_refused_with_a_reason(text, why):
    with pytest.raises(UsageError, match=why) as caught:
        parse_reference(text)
    assert "such as debian" in caught.value.next_step
    assert "\n" not in str(caught.value)


def test_docker_hub_is_asked_at_its_own_host():
    assert parse_reference("debian").api_host == "registry-1.docker.io"
    assert parse_reference("localhost:5000/x").api_host == "localhost:5000"
    assert normal_registry("Index.Docker.io") == "docker.io"


def test_a_digest_goes_before_the_tag():
    found = parse_reference("a:1")
    assert found.locator == "1"
    pinned = found.with_digest(DIGEST)
    assert pinned.locator == DIGEST
    assert pinned == Reference("docker.io", "library/a", "1", DIGEST)
