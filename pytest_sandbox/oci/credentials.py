"""Credentials for registries, from where `docker login` and `podman login` put them.

Files in this order: $DOCKER_CONFIG/config.json, $REGISTRY_AUTH_FILE, ~/.docker/config.json (if
DOCKER_CONFIG is not set),
$XDG_RUNTIME_DIR/containers/auth.json, $XDG_CONFIG_HOME/containers/auth.json (~/.config). In each, a
helper of `credHelpers`, then that of `credsStore`, then `auths`; the first that knows the registry
is taken. After docker's config.json and containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import Blame, InvalidImage, RegistryError
from pytest_sandbox.oci.bounds import MIB
from pytest_sandbox.oci.documents import read_document
from pytest_sandbox.oci.reference import DOCKER_HUB, normal_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HUB_KEY: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"  # what a helper calls itself for an identity token
_NOT_FOUND: Final = b"credentials not found"
_HELP: Final = "log in again, or correct that file"
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f]*")


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What opens a registry: a user with a password, or a token. Its repr keeps the secret.

    `identity_token` is an OAuth refresh token, `registry_token` is sent as it is. `source` says
    where it was found.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    source: str = ""

    def __repr__(self) -> str:
        return f"Credential(username={self.username!r}, source={self.source!r})"

    @property
    def basic(self) -> str:
        """The header value of Basic authentication; empty without a user and a password."""
        if not (self.username and self.password):
            return ""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def secrets(self) -> list[str]:
        """The texts that must never be shown."""
        found = [self.password, self.identity_token, self.registry_token]
        return [secret for secret in [*found, self.basic.removeprefix("Basic ")] if secret]


class Credentials:
    """Looks credentials up, each file once. `timeout` is how long a helper may take, in seconds.

    Safe for threads.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, timeout: float = 30.0) -> None:
        self._environ = environ
        self._timeout = timeout
        self._lock = threading.Lock()
        self._files: dict[Path, dict[str, Any]] = {}
        self._known: dict[tuple[str, str], Credential | None] = {}

    def find(self, registry: str, repository: str = "") -> Credential | None:
        """The credential for a registry (`host[:port]`), or for one repository of it if a file
        tells them apart. None where there is none. Raises RegistryError for a file or a helper that
        does not work.
        """
        key = (normal_registry(registry), repository)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._look_up(*key)
            return self._known[key]

    def paths(self) -> Iterator[Path]:
        """The files that are looked at, in their order, whether they exist or not."""
        home = self._environ.get("HOME", "")
        folder = self._environ.get("DOCKER_CONFIG")
        if folder:
            yield Path(folder) / "config.json"
        if file := self._environ.get("REGISTRY_AUTH_FILE"):
            yield Path(file)
        if home and not folder:  # docker looks at one of the two
            yield Path(home) / ".docker" / "config.json"
        if runtime := self._environ.get("XDG_RUNTIME_DIR"):
            yield Path(runtime) / "containers" / "auth.json"
        config = self._environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
        if config:
            yield Path(config) / "containers" / "auth.json"

    def _look_up(self, registry: str, repository: str) -> Credential | None:
        for path in self.paths():
            found = self._in_file(path, registry, repository)
            if found is not None:
                return found
        return None

    def _in_file(self, path: Path, registry: str, repository: str) -> Credential | None:
        document = self._read(path)
        helpers = _section(document, "credHelpers", path)
        for name, helper in helpers.items():
            if _host(name) == registry:
                found = self._ask_helper(helper, name, path)
                if found is not None:
                    return found
        store = document.get("credsStore")
        if store:
            server = _HUB_KEY if registry == DOCKER_HUB else registry
            found = self._ask_helper(store, server, path)
            if found is not None:
                return found
        entry = _longest(_section(document, "auths", path), registry, repository)
        return None if entry is None else _decode(entry[1], f"{path} ({entry[0]})")

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._files:
            try:
                with path.open("rb") as file:
                    data = file.read(4 * MIB + 1)
                document = read_document(data, what=str(path), limit=4 * MIB) if data else {}
            except (FileNotFoundError, NotADirectoryError):
                document = {}
            except OSError as error:
                raise _broken(path, f"cannot be read: {error.strerror}") from None
            except InvalidImage as error:
                raise RegistryError(error.what, blame=Blame.HOST, next_step=_HELP) from None
            self._files[path] = document
        return self._files[path]

    def _ask_helper(self, helper: object, server: str, path: Path) -> Credential | None:
        """`docker-credential-HELPER get`; None where it knows no credential of that server."""
        import shutil

        if not isinstance(helper, str) or not re.fullmatch(r"[\w.+-]{1,100}", helper):
            raise _broken(path, f"{str(helper)[:80]!r} is no name of a credential helper")
        program = f"docker-credential-{helper}"
        found = shutil.which(program, path=self._environ.get("PATH"))
        if found is None:
            raise _broken(path, f"names the credential helper {program}, which is not in PATH")
        status, output = self._run(found, server, program)
        if status != 0:
            if _NOT_FOUND in output.lower():
                return None
            # neither of its streams is shown: who knows what a helper prints
            raise _broken(program, f"get, for {server}, ended with the status {status}")
        try:
            answer = json.loads(output)
            user, secret = answer["Username"], answer["Secret"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _broken(program, f"get, for {server}, printed no credential") from None
        if not isinstance(user, str) or not isinstance(secret, str):
            raise _broken(program, f"get, for {server}, printed no credential")
        if not secret:
            return None
        if user == _TOKEN_USER:
            return _checked(Credential(identity_token=secret, source=program))
        return _checked(Credential(user, secret, source=program))

    def _run(self, program: str, server: str, name: str) -> tuple[int, bytes]:
        import subprocess
        import tempfile

        # files, not pipes: what a helper leaves running (an agent) may hold its stdout for ever
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
            given.write(server.encode() + b"\n")
            given.seek(0)
            try:
                process = subprocess.Popen(
                    [program, "get"],
                    stdin=given,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    env=dict(self._environ),
                )
            except OSError as error:
                raise _broken(name, f"cannot be started: {error.strerror}") from None
            try:
                status = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                problem = f"get, for {server}, has not answered in {self._timeout:g} s"
                raise _broken(name, problem) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            output.seek(0)
            return status, output.read(MIB)


def _section(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise _broken(path, f"{name} is no object")
    return value


def _host(key: str) -> str:
    """The registry that a key means: without a scheme and a path, in one spelling."""
    return normal_registry(re.sub(r"^https?://", "", key).partition("/")[0])


def _longest(auths: Mapping[str, Any], registry: str, repository: str) -> tuple[str, Any] | None:
    """The entry for a repository: its own, those of its namespaces, the registry's, then docker's
    spellings with scheme and path.
    """
    names = [registry]
    for part in filter(None, repository.split("/")):
        names.append(f"{names[-1]}/{part}")
    for name in reversed(names):
        if name in auths:
            return name, auths[name]
    spelled = [key for key in auths if _host(key) == registry and _is_whole_registry(key)]
    return (spelled[0], auths[spelled[0]]) if spelled else None


def _is_whole_registry(key: str) -> bool:
    """Whether a key is for a whole registry, not for a namespace: `https://host/v1/`, `Host`."""
    _, slash, path = re.sub(r"^https?://", "", key).partition("/")
    return not slash or re.fullmatch(r"(v[12]/?)?", path) is not None


def _decode(entry: object, source: str) -> Credential | None:
    """An entry of `auths`; None for an empty one (docker leaves those beside a helper)."""
    if not isinstance(entry, dict):
        raise _broken(source, "is no object")

    def text(name: str) -> str:
        value = entry.get(name) or ""
        if not isinstance(value, str):
            raise _broken(source, f"{name} is no text")
        return value

    user, password = text("username"), text("password")
    if text("auth"):
        try:
            pair = base64.b64decode(text("auth"), validate=True).decode()
        except (binascii.Error, ValueError):
            raise _broken(source, "auth is not base64") from None
        user, colon, password = pair.rstrip("\0").partition(":")
        if not colon:
            raise _broken(source, "auth holds no user and password")
    found = Credential(user, password, text("identitytoken"), text("registrytoken"), source)
    if user == _TOKEN_USER and password:
        found = Credential(identity_token=password, source=source)
    return _checked(found) if found.secrets() else None


def _checked(found: Credential) -> Credential:
    texts = (found.username, found.password, found.identity_token, found.registry_token)
    if not all(_PRINTABLE.fullmatch(text) for text in texts):
        raise _broken(found.source, "the credential holds control characters")
    return found


def _broken(where: object, problem: str) -> RegistryError:
    what = f"credentials: {where}: {problem}"
    return RegistryError(what, blame=Blame.HOST, next_step=_HELP)
