from __future__ import annotations

import pytest

from pytest_sandbox.provision.proxies import masked, proxy_environment, secrets


def test_both_cases_are_given():
    env = proxy_environment({"HTTPS_PROXY": "http://p:3128", "no_proxy": "localhost"})
    assert env == {
        "https_proxy": "http://p:3128",
        "HTTPS_PROXY": "http://p:3128",
        "no_proxy": "localhost",
        "NO_PROXY": "localhost",
    }


def test_lower_case_wins_and_empty_is_unset():
    env = proxy_environment({"http_proxy": "http://a", "HTTP_PROXY": "http://b", "ALL_PROXY": ""})
    assert env == {"http_proxy": "http://a", "HTTP_PROXY": "http://a"}


@pytest.mark.parametrize(
    "name", ["GITHUB_TOKEN", "MY_SECRET", "DB_PASSWORD", "PGPASSWD", "API_KEY", "AWS_CREDENTIALS"]
)
def test_values_of_secret_variables_are_masked(name):
    hidden = secrets({name: "s3cr3t-value"})
    assert masked("curl: s3cr3t-value refused", hidden) == "curl: [REDACTED] refused"


def test_short_values_paths_and_switches_are_no_secrets():
    assert secrets({"KEY": "abc", "SSH_KEY_PATH": "/home/me/.ssh/id", "TOKEN_X": "false"}) == ()


def test_proxy_credentials_are_masked_encoded_or_not():
    hidden = secrets({"https_proxy": "http://bob:p%40ssw0rd@proxy.corp:8080"})
    text = masked("via http://bob:p%40ssw0rd@proxy.corp:8080 with p@ssw0rd", hidden)
    assert "ssw0rd" not in text
    assert "proxy.corp:8080" in text


def test_credentials_of_any_url_are_masked():
    assert masked("GET https://u:pw@host/x", ()) == "GET https://[REDACTED]@host/x"
    assert masked("GET https://host/a:b@c", ()) == "GET https://host/a:b@c"


def test_a_secret_inside_a_longer_one_leaves_no_rest():
    hidden = secrets({"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh-longer"})
    assert masked("x abcdefgh-longer y abcdefgh", hidden) == "x [REDACTED] y [REDACTED]"
