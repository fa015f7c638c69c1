"""What the tests of oci share: real registries on loopback ports."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from tests.oci.requiring import program

# user `me`, password `geheim`; bcrypt, the only hash that docker-registry takes
HTPASSWD = "me:$2y$05$abcdefghijklmnopqrstuuVWu8RjbNovPZWAMRdd7iqaaG0mI53Uu\n"


class RealRegistry:
    """A docker-registry of the tests' own. `host` is what a reference begins with."""

    def __init__(self, host, folder):
        self.host, self.folder = host, folder
        self.base = f"http://{host}"


@contextmanager
def running_registry(folder, *, htpasswd=""):
    """Start docker-registry with its storage in a folder; missing where it is not installed."""
    registry = program("docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    config = folder / "config.yml"
    auth = ""
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd)
        auth = f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{host}'}}\n{auth}"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
    )
    dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*dies_with_us, registry, "serve", str(config)], stdout=log, stderr=log
        )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            except urllib.error.HTTPError as error:
                error.close()
                break  # it wants a password
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield RealRegistry(host, folder)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A real registry, open to all, for the whole session."""
    with running_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory):
    """A real registry that wants the user `me` with the password `geheim`."""
    folder = tmp_path_factory.mktemp("locked")
    with running_registry(folder, htpasswd=HTPASSWD) as found:
        yield found
