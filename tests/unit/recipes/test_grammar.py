"""The grammars let real names through and nothing that a shell or a Dockerfile would read."""

from __future__ import annotations

from functools import partial

import pytest

from pytest_sandbox.errors import RecipeError
from pytest_sandbox.recipes import grammar
from pytest_sandbox.recipes.grammar import GrammarError
from pytest_sandbox.recipes.load import parse_recipe
from tests.unit.recipes.vectors import recipe_text

HOSTILE = [
    "a; rm -rf /",
    "a b",
    "a\nRUN evil",
    "$(id)",
    "`id`",
    "a|b",
    "a&b",
    "a>b",
    "a'b",
    'a"b',
    "a\\b",
    "-o=x",
    "--root=/",
    "a\x00b",
    "a*",
    "",
    3,
    None,
    ["a"],
]
MANAGERS = ("apt", "dnf", "pacman", "apk", "zypper", "brew")


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize(
    "check",
    [
        *(pytest.param(partial(grammar.check_package, m), id=m) for m in MANAGERS),
        grammar.check_command,
        grammar.check_system_command,
        grammar.check_group,
        grammar.check_service,
        grammar.check_ppa,
        grammar.check_tap,
        grammar.check_sha256,
        grammar.check_url,
        grammar.check_dnf_url,
        grammar.check_apt_source,
        grammar.check_suite,
        grammar.check_version,
        grammar.check_recipe_name,
    ],
)
def test_hostile_values_are_refused(check, value):
    with pytest.raises(GrammarError):
        check(value)


@pytest.mark.parametrize(
    ("manager", "names"),
    [
        ("apt", ["g++", "libstdc++6", "docker.io", "libc6:i386", "jq=1.6-2.1+b1", "python3.12"]),
        ("dnf", ["gcc-c++", "@development-tools", "glibc.i686", "NetworkManager", "a_b"]),
        ("pacman", ["base-devel", "extra/jq", "lib32-gcc-libs", "libc++"]),
        ("apk", ["libstdc++", "py3-pip", "jq=1.7.1-r0", "jq~1.7"]),
        ("zypper", ["gcc-c++", "Mesa-vulkan-device-select", "jq=1.6"]),
        ("brew", ["openssl@3", "owner/tap/tool", "gcc"]),
    ],
)
def test_real_packages_pass(manager, names):
    assert [grammar.check_package(manager, name) for name in names] == names


@pytest.mark.parametrize(
    ("manager", "name"),
    [("apt", "jq-"), ("apt", "Jq"), ("pacman", ".hidden"), ("apk", "a<1"), ("brew", "a/b")],
)
def test_managers_own_signs_are_refused(manager, name):
    with pytest.raises(GrammarError, match=r"is not an? "):
        grammar.check_package(manager, name)


def test_unknown_manager():
    with pytest.raises(GrammarError, match="use one of apt, dnf"):
        grammar.check_package("atp", "jq")


@pytest.mark.parametrize(
    ("manager", "name", "bare"),
    [
        ("apt", "jq=1.6-2", "jq"),
        ("apk", "jq~1.7", "jq"),
        ("pacman", "extra/jq", "jq"),
        ("zypper", "jq=1", "jq"),
        ("dnf", "jq", "jq"),
    ],
)
def test_bare_package(manager, name, bare):
    assert grammar.bare_package(manager, name) == bare


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/debian",
        "https://example.com:8443/a?b=c&d=%20",
        "http://127.0.0.1:8000/repo",
        "http://localhost/x",
        "http://[::1]:80/x",
        "https://example.com/{version}/x",
    ],
)
def test_urls(url):
    assert grammar.check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https://user:pw@example.com/",
        "https://example.com/$(id)",
        "https://example.com:port/",
        "http://127.0.0.1.example.com/",
        "file:///etc/passwd",
    ],
)
def test_refused_urls(url):
    with pytest.raises(GrammarError):
        grammar.check_url(url)


def test_repository_addresses():
    source = "https://example.com/debian trixie main contrib"
    assert grammar.check_apt_source(source) == source
    assert grammar.check_apt_source("https://example.com/debian ./")
    with pytest.raises(GrammarError, match="SUITE"):
        grammar.check_apt_source("https://example.com/debian trixie")
    with pytest.raises(GrammarError):
        grammar.check_apt_source("https://example.com/debian trixie main\nmalicious")
    dnf = "https://example.com/$releasever/$basearch"
    assert grammar.check_dnf_url(dnf) == dnf
    with pytest.raises(GrammarError):
        grammar.check_dnf_url("https://example.com/$HOME")


@pytest.mark.parametrize(
    ("action", "params", "where"),
    [
        ("apt_repo", {"url": "http://x.example/ a b"}, ("url",)),
        ("apt_repo", {"key_sha256": "zz"}, ("key_sha256",)),
        ("apt_repo", {"components": ["main", "a;b"]}, ("components", 1)),
        ("apt_ppa", {"ppa": "a b"}, ("ppa",)),
        ("dnf_repo", {"gpgkey": "http://x.example/k"}, ("gpgkey",)),
        ("brew_cask", {"tap": "x"}, ("tap",)),
        ("service_start", {"service": "a;b"}, ("service",)),
        ("require_command", {"version_regex": "("}, ("version_regex",)),
        ("require_command", {"version_regex": "x"}, ("version_regex",)),
        ("require_command", {"version_flag": "a\nb"}, ("version_flag",)),
        ("require_system", {"command": "a=b"}, ("command",)),
        ("require_system", {"min_version": "1 2"}, ("min_version",)),
        ("manual", {"text": 3}, ("text",)),
        ("zypper_install", {"packages": ["ok", "--root"]}, ("packages", 1)),
    ],
)
def test_parameters_are_held_to_their_grammar(action, params, where):
    with pytest.raises(GrammarError) as caught:
        grammar.check_params(action, params)
    assert caught.value.where == where


def test_templates_count_as_digits():
    grammar.check_params("apt_install", {"packages": ["python{version}"]})
    with pytest.raises(GrammarError):
        grammar.check_params("apt_install", {"packages": ["python{version;id}"]})


def test_what_is_missing_still_loads():
    for params in ("", "packages = []", 'packages = "jq"', "packages = [3]"):
        step = f'[[steps]]\naction = "apt_install"\n{params}\n'
        assert parse_recipe(recipe_text(step)).steps[0].action == "apt_install"
    with pytest.raises(RecipeError, match="Debian package name"):
        parse_recipe(recipe_text('[[steps]]\naction = "apt_install"\npackages = ["a b", 3]\n'))
