"""Every setting of registries and images shows an effect: on a real pull, on a real command."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from pytest_sandbox.errors import InvalidImage, RegistryError
from pytest_sandbox.oci.layout import stored_manifest
from pytest_sandbox.oci.pull import pull
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.runtimes.oci.registry_settings import open_registry
from pytest_sandbox.settings import read_settings
from tests.oci.registry.scripted import Scripted, stall
from tests.oci.store.making import BASE, SECOND, THIRD, Made, tar
from tests.oci.store.seeing import diffs

ROOT = Path(__file__).parents[3]
APP = Made(BASE, SECOND, THIRD)
DEEP = "/".join(["d" * 250] * 20)


@pytest.fixture
def environ(tmp_path):
    """Nothing of this machine's own settings."""
    return {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "none"), "HOME": str(tmp_path)}


@pytest.fixture
def fetch(store, server, environ):
    """Pulls under settings from the server, or what is named."""
    said = []

    def fetch(name="", /, **options):
        settings = read_settings(options.get, lambda _: None, {})
        with open_registry(settings, environ, said.append) as registry:
            registry.rule = replace(registry.rule, sleep=lambda _: None)
            reference = parse_reference(name or f"{server.host}/some/app:1")
            return pull(reference, store=store, registry=registry, bounds=registry.bounds)

    fetch.said = said
    return fetch


# --- bounds: what is over the default, or over a lower one ----------------------------------------


def long_manifest():
    made = Made(BASE)
    document = json.loads(made.manifest)
    document["annotations"] = {"long": "x" * (5 << 20)}
    made.raw = json.dumps(document).encode()
    return made


def long_record():
    info = tarfile.TarInfo("etc/name")
    info.pax_headers = {"comment": "x" * (3 << 19)}
    return Made(tar((info, b"base")))


def wide_window():
    parameters = zstandard.ZstdCompressionParameters(window_log=28)

    def pack(data):
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return packer.compress(data) + packer.flush()

    return Made(BASE, pack=pack)


OVER = {
    "manifest": (long_manifest, "8m", "larger than 4194304 bytes"),
    "config": (lambda: Made(BASE, comment="x" * (9 << 20)), "16m", "at most 8388608 are taken"),
    "ratio": (lambda: Made(tar(("zeros", bytes(101 << 20)))), "5000", "more than 200 times"),
    "record": (long_record, "2m", "over the bound of 1048576"),
    "zstd-window": (wide_window, "256m", "needs a window of more than 134217728 bytes"),
    "path": (lambda: Made(tar((f"{DEEP}/leaf", b"deep"))), "8k", "longer than 4096 bytes"),
}
"""Bound -> an image that the default refuses, a value that takes it, what the refusal says."""

LOW = {
    "layers": ("2", "has 3 layers; at most 2 are taken"),
    "entries": ("1", "more than 1 entries"),
    "layer-bytes": ("1k", "more than 1024 bytes"),
}
"""Bound -> a value that refuses APP, what that says: over these defaults a test would be long."""


@pytest.mark.parametrize("name", OVER)
def test_a_bound_is_raised_and_what_it_lets_in_can_be_used(fetch, store, server, name):
    make, value, refusal = OVER[name]
    server.add("some/app", "1", made := make())
    with pytest.raises((InvalidImage, RegistryError), match=re.escape(refusal)) as caught:
        fetch()
    if name not in {"path", "record"}:
        assert f"--sandbox-image-bound {name}=VALUE" in caught.value.next_step
    assert store.images() == []
    image = fetch(image_bound=[f"{name}={value}"])
    (found,) = store.images()  # read back, whatever its size
    assert (found.digest, found.config) == (image.digest, image.config)
    assert stored_manifest(store, found).raw == made.raw
    (files,) = diffs(store, found) if name != "path" else ({},)
    assert name == "path" or files


@pytest.mark.parametrize("name", LOW)
def test_a_bound_is_lowered(fetch, store, server, name):
    value, refusal = LOW[name]
    server.add("some/app", "1", APP)
    with pytest.raises(InvalidImage, match=re.escape(refusal)):
        fetch(image_bound=[f"{name}={value}"])
    assert store.images() == []
    assert fetch().digest == APP.digest


def test_a_deeper_index_is_taken(fetch, server):
    def around(inner):
        entry = Made.descriptor(inner.media_type, inner.raw)
        made = Made(BASE)
        made.media_type = "application/vnd.oci.image.index.v1+json"
        document = {"schemaVersion": 2, "mediaType": made.media_type, "manifests": [entry]}
        made.raw = json.dumps(document).encode()
        made.digest = Made.descriptor("", made.raw)["digest"]
        made.blobs, made.manifests = inner.blobs, [inner, *inner.manifests]
        return made

    server.add("some/app", "1", around(around(around(APP))))
    with pytest.raises(InvalidImage, match="nested more than 2 deep") as caught:
        fetch()
    assert "--sandbox-image-bound index-depth=VALUE" in caught.value.next_step
    assert fetch(image_bound=["index-depth=3"]).digest == APP.digest


# --- servers --------------------------------------------------------------------------------------


def test_a_mirror_is_asked_in_place_of_the_registry(fetch, server):
    server.add("hub/some/app", "1", APP)
    found = fetch("far.invalid/some/app:1", registry_mirror=[f"far.invalid={server.base}/hub"])
    assert found.digest == APP.digest
    assert str(found.reference) == "far.invalid/some/app:1"


def test_the_machines_own_mirror_is_asked(fetch, server, environ):
    server.add("hub/some/app", "1", APP)
    Path(environ["CONTAINERS_REGISTRIES_CONF"]).write_text(
        '[[registry]]\nlocation = "far.invalid"\n[[registry.mirror]]\n'
        f'location = "{server.host}/hub"\ninsecure = true\n'
    )
    assert fetch("far.invalid/some/app:1").digest == APP.digest


def own_address():
    """An address of this machine that is not loopback, or none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return ""
        found = probe.getsockname()[0]
    return "" if found.startswith("127.") else found


def test_plain_http_to_another_machine_has_to_be_asked_for(fetch):
    address = own_address()
    if not address:
        pytest.skip("this machine has no address but loopback")
    with Scripted(address=address) as server:
        server.add("some/app", "1", APP)
        name = f"{server.host}/some/app:1"
        with pytest.raises(RegistryError) as caught:
            fetch(name)
        assert server.log == []
        assert f"--sandbox-registry-insecure {server.host}" in caught.value.next_step
        assert fetch(name, registry_insecure=[server.host]).digest == APP.digest


def test_a_realm_that_is_listed_gets_the_credentials(fetch, environ, tmp_path):
    with Scripted() as tokens, Scripted(auth="token", realm=f"{tokens.base}/token") as server:
        server.tokens = tokens.tokens
        server.add("some/app", "1", APP)
        entry = {"username": "me", "password": "geheim"}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: entry}}))
        environ["DOCKER_CONFIG"] = str(tmp_path)
        name = f"{server.host}/some/app:1"
        with pytest.raises(RegistryError) as caught:
            fetch(name)
        assert [each.authorization for each in tokens.log] == [""]
        realm = f"{server.host}={tokens.base}"
        assert f"--sandbox-registry-realm {realm}" in caught.value.next_step
        assert fetch(name, registry_realm=[realm]).digest == APP.digest
        assert tokens.log[-1].authorization.startswith("Basic ")


def test_a_registry_is_given_up_after_the_time_that_it_may_be_silent(fetch, server):
    server.add("some/app", "1", APP)
    server.on("GET .*/manifests/", *[stall(0)] * 4)
    began = time.monotonic()
    with pytest.raises(RegistryError):
        fetch(registry_timeout="0.3")
    assert 1.2 <= time.monotonic() - began < 10
    assert len(fetch.said) == 3
    assert re.search("try 2 of 4 in 1 s", fetch.said[0])


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, supervisor):
    """Calls `pytest-sandbox` with a store of its own: exit status and what it wrote on stderr."""
    folder = tmp_path / "store-of-calls"

    def call(*words, **variables):
        environ = {**os.environ, "PYTEST_SANDBOX_DATA": str(folder), "HOME": str(tmp_path)}
        environ |= {"PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(
            [sys.executable, "-m", "pytest_sandbox.cli", *words],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stderr

    yield call
    handle = os.open(tmp_path, os.O_RDONLY)
    names = {"names": [folder.name]}
    supervisor.call("pytest_sandbox.oci.layers.jobs:remove", names, [handle], where="host")
    os.close(handle)


@pytest.mark.parametrize("verb", [("image", "pull", "-q"), ("run", "-q")])
def test_options_variables_and_ini_reach_the_verbs(call, server, tmp_path, verb):
    server.add("some/app", "1", APP)
    mirror = f"far.invalid={server.base}"
    name = "far.invalid/some/app:1"
    command = ("/none",) if verb[0] == "run" else ()
    refused = "has 3 layers; at most 2 are taken"
    status, said = call(*verb, "--registry-mirror", mirror, "--image-bound=layers=2", name)
    assert (status != 0, refused in said) == (True, True), said
    variables = {"PYTEST_SANDBOX_REGISTRY_MIRROR": mirror}
    status, said = call(*verb, name, PYTEST_SANDBOX_IMAGE_BOUND="layers=2", **variables)
    assert (status != 0, refused in said) == (True, True), said
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nsandbox_registry_mirror = {mirror}\nsandbox_image_bound = layers=2\n"
    )
    status, said = call(*verb, name)
    assert (status != 0, refused in said) == (True, True), said
    # The option is stronger than the file, and then the image comes.
    status, said = call(*verb, "--image-bound=layers=3", name, *command)
    assert status == (127 if command else 0), said


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--engine", "/none/runc", "'/none/runc' is no program that can be run"),
        ("--snapshotter", "zfs", "zfs"),
        ("--image-bound", "layer=1", "there is no bound 'layer'"),
        ("--registry-timeout", "soon", "'soon' is no number"),
        ("--pull", "never", "is not in the store, and is not to be pulled"),
        ("--pull", "maybe", "maybe"),
    ],
)
def test_run_takes_them_from_options_and_variables(call, server, option, value, said):
    server.add("some/app", "1", APP)
    name = f"{server.host}/some/app:1"
    short = option.removeprefix("--").replace("-", "_").upper()
    part = "OCI_" if short in {"ENGINE", "SNAPSHOTTER"} else ""
    variable = f"PYTEST_SANDBOX_{part}{short}"
    for words, variables in (((option, value), {}), ((), {variable: value})):
        status, text = call("run", "-q", *words, name, "/none", **variables)
        assert status in {2, 125}, text
        assert said in text


def test_offline_pulls_nothing(call, server):
    server.add("some/app", "1", APP)
    status, said = call("run", f"{server.host}/some/app:1", PYTEST_SANDBOX_OFFLINE="1")
    assert status == 125
    assert "is not to be pulled" in said
    assert server.log == []


@pytest.mark.parametrize("name", ["overlay", "copy"])
def test_the_snapshotter_is_the_one_that_was_asked_for(call, server, tmp_path, name):
    server.add("some/app", "1", APP)
    status, said = call("run", "-q", "--snapshotter", name, f"{server.host}/some/app:1", "/none")
    assert status == 127, said
    kept = json.loads((tmp_path / "store-of-calls/oci/snapshotter.json").read_text())
    assert kept["name"] == name
