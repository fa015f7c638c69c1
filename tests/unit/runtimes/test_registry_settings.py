"""What settings and the machine's own files make of the registry client."""

from __future__ import annotations

import json

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.limits import parse_size
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.options import BOUNDS
from pytest_sandbox.runtimes.oci.host_registries import host_registries
from pytest_sandbox.runtimes.oci.registry_settings import bounds_of, open_registry, servers
from pytest_sandbox.settings import Settings, read_settings


def read(**options):
    return read_settings(options.get, lambda _: None, {})


@pytest.fixture
def nowhere(tmp_path):
    """An environment in which no file of the machine is read."""
    return {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "none"), "HOME": str(tmp_path)}


def machine(tmp_path, **files):
    """A root folder with some files below it."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


# --- bounds -----------------------------------------------------------------------------------


def test_the_names_of_bounds_are_those_of_the_library():
    fields = {field.replace("_", "-") for field in Bounds._fields}
    assert set(BOUNDS) <= fields
    # What is left has no meaning to a user: the floor of the ratio, tokens, error pages.
    assert fields - set(BOUNDS) == {"ratio-floor", "token", "error"}


@pytest.mark.parametrize("name", BOUNDS)
def test_each_bound_is_raised_alone(name):
    field = name.replace("-", "_")
    settings = read(image_bound=[f"{name}=123"])
    assert bounds_of(settings) == DEFAULT_BOUNDS._replace(**{field: 123})


def test_sizes_have_units_and_the_last_one_counts():
    settings = read(image_bound=["layer-bytes=64g", "manifest=1m", "manifest=8m"])
    assert bounds_of(settings).layer_bytes == parse_size("64g")
    assert bounds_of(settings).manifest == 8 << 20
    assert bounds_of(Settings()) == DEFAULT_BOUNDS


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("layers", "'layers' is no NAME=VALUE; next: write it like layers=600"),
        ("layers=", "is no NAME=VALUE"),
        ("layer=3", "there is no bound 'layer'; next: use one of manifest, config, index-depth"),
        ("layers=1.5", "layers: '1.5' is no whole number"),
        ("layers=0", "layers: '0' is not above zero"),
        ("layers=4k", "layers: '4k' is no whole number"),
        ("record=much", "record: 'much' is no size"),
        ("record=0", "record: '0' is not above zero"),
    ],
)
def test_bounds_that_are_none(value, wrong):
    with pytest.raises(UsageError) as caught:
        read(image_bound=[value])
    assert wrong in str(caught.value)
    assert "image-bound" in str(caught.value)


# --- servers ----------------------------------------------------------------------------------


def test_mirrors_keep_their_order_and_http_is_asked_as_it_was_written(nowhere):
    settings = read(
        registry_mirror=[
            "docker.io=http://mirror.lan:5000",
            "docker.io=https://far.example/hub",
            "index.docker.io=https://other.example",
            "quay.io=https://q.example",
        ],
        registry_insecure=["old.lan:5000"],
    )
    mirrors, insecure = servers(settings, nowhere)
    assert mirrors["quay.io"] == ("https://q.example",)
    assert mirrors["docker.io"] == (
        "http://mirror.lan:5000",
        "https://far.example/hub",
        "https://other.example",
    )
    assert insecure == ("old.lan:5000", "mirror.lan:5000")


def test_the_client_has_what_was_set(nowhere):
    settings = read(
        registry_mirror=["docker.io=https://mirror.example"],
        registry_timeout="7.5",
        image_bound=["layers=3"],
    )
    said = []
    with open_registry(settings, nowhere, said.append) as registry:
        assert registry.bounds.layers == 3
        registry.rule.say("a retry")
    assert said == ["a retry"]


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("registry_mirror", "docker.io", "is no REGISTRY=URL"),
        ("registry_mirror", "docker.io=mirror.lan", "'mirror.lan' is no address"),
        ("registry_mirror", "docker.io=ftp://mirror.lan", "is no address"),
        ("registry_mirror", "docker.io=https://me:pw@mirror.lan", "is no address"),
        ("registry_mirror", "docker.io=https://mirror.lan/?a=b", "is no address"),
        ("registry_mirror", "docker.io/library=https://mirror.lan", "is no registry"),
        ("registry_realm", "quay.io=https://login.example/token", "is no address"),
        ("registry_insecure", "http://old.lan", "'http://old.lan' is no HOST[:PORT]"),
        ("registry_timeout", "-1", "is not above zero"),
        ("oci_snapshotter", "zfs", "use one of auto, overlay"),
        ("weak_limits", "1", "use one of allow, refuse"),
    ],
)
def test_values_that_are_refused_name_the_setting(key, value, wrong):
    listed = key in {"registry_mirror", "registry_realm", "registry_insecure"}
    with pytest.raises(UsageError) as caught:
        read(**{key: [value] if listed else value})
    assert wrong in str(caught.value)
    assert key.replace("_", "-") in str(caught.value)


# --- the machine's own files --------------------------------------------------------------------


def test_mirrors_of_podman_and_docker_are_ours(tmp_path):
    root = machine(
        tmp_path,
        **{
            "etc__containers__registries.conf": """
unqualified-search-registries = ["docker.io"]

[[registry]]
prefix = "docker.io"
location = "docker.io"

[[registry.mirror]]
location = "near.example:5000/hub"

[[registry.mirror]]
location = "plain.lan:5000"
insecure = true

[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"

[[registry]]
location = "old.lan"
insecure = true

[[registry]]
prefix = "quay.io"
location = "proxy.example/quay"

[[registry]]
prefix = "docker.io/library"
location = "part.example"

[[registry]]
prefix = "*.example.com"
location = "wild.example"

[[registry]]
location = "never.example"
blocked = true
""",
            "etc__containers__registries.conf.d__more.conf": """
[[registry]]
location = "more.lan:80"
insecure = true
""",
            "etc__docker__daemon.json": json.dumps(
                {
                    "registry-mirrors": ["https://near.example:5000/hub/", "http://third.lan/"],
                    "insecure-registries": ["fourth.lan:5000", "10.0.0.0/8"],
                }
            ),
        },
    )
    found = host_registries({"HOME": "/nonexistent"}, root)
    assert found.mirrors == {
        "docker.io": (
            "https://near.example:5000/hub",
            "http://plain.lan:5000",
            "http://third.lan",
        ),
        "quay.io": ("https://proxy.example/quay",),
    }
    assert found.insecure == (
        "plain.lan:5000",
        "old.lan",
        "more.lan:80",
        "fourth.lan:5000",
        "third.lan",
    )
    assert [file.rpartition("/")[2] for file in found.files] == [
        "registries.conf",
        "more.conf",
        "daemon.json",
    ]


def test_the_users_own_file_stands_in_place_of_the_machines(tmp_path):
    entry = '[[registry]]\nlocation = "{}"\ninsecure = true\n'
    root = machine(
        tmp_path,
        **{
            "etc__containers__registries.conf": entry.format("system.lan"),
            "home__.config__containers__registries.conf": entry.format("mine.lan"),
            "given.conf": entry.format("given.lan"),
        },
    )
    home = {"HOME": str(root / "home")}
    assert host_registries(home, root).insecure == ("mine.lan",)
    assert host_registries({}, root).insecure == ("system.lan",)
    given = {**home, "CONTAINERS_REGISTRIES_CONF": str(root / "given.conf")}
    assert host_registries(given, root).insecure == ("given.lan",)


@pytest.mark.parametrize("text", ["", "[[registry", "registry = 3", "registry = [1]", "\x00"])
@pytest.mark.parametrize("name", ["etc__containers__registries.conf", "etc__docker__daemon.json"])
def test_files_that_cannot_be_read_say_nothing(tmp_path, name, text):
    root = machine(tmp_path, **{name: text})
    found = host_registries({}, root)
    assert (found.mirrors, found.insecure, found.files) == ({}, (), ())


def test_a_setting_stands_in_place_of_the_machines_mirrors_of_that_registry(tmp_path):
    path = tmp_path / "registries.conf"
    path.write_text(
        '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "host.example"\n'
        '[[registry]]\nlocation = "quay.io"\n[[registry.mirror]]\nlocation = "host.example"\n'
    )
    environ = {"CONTAINERS_REGISTRIES_CONF": str(path), "HOME": str(tmp_path)}
    mirrors, _ = servers(read(registry_mirror=["docker.io=https://own.example"]), environ)
    assert mirrors == {"docker.io": ("https://own.example",), "quay.io": ("https://host.example",)}
