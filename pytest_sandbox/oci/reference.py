"""References of images: `[registry/]repository[:tag][@digest]`, as Docker reads them.

After distribution/reference; Docker Hub is meant where the first part is no host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from pytest_sandbox.errors import UsageError

DOCKER_HUB: Final = "docker.io"
_HUB_API: Final = "registry-1.docker.io"
_HUB_OLD: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_REPOSITORY: Final = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST: Final = 255
_FORM: Final = "write [REGISTRY/]NAME[:TAG][@sha256:DIGEST], such as debian:bookworm-slim"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's name in one spelling. `registry` may carry a port; `tag` or `digest` may be empty,
    not both.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """The canonical form, with registry and namespace written out."""
        return f"{self.name}{self._suffix()}"

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The short form that people write: Docker Hub's names without their host."""
        name = self.name
        if self.registry == DOCKER_HUB:
            name = self.repository
            short = name.removeprefix(_OFFICIAL)
            if "/" not in short:
                name = short
        return f"{name}{self._suffix()}"

    @property
    def locator(self) -> str:
        """What the registry is asked for: the digest if there is one, else the tag."""
        return self.digest or self.tag

    @property
    def api_host(self) -> str:
        """The host (and port) that serves the registry's API."""
        return api_host(self.registry)

    def with_digest(self, digest: str) -> Reference:
        """The same name pinned to a digest."""
        return replace(self, digest=digest)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


def api_host(registry: str) -> str:
    """The host that serves a registry's API: itself, but for Docker Hub."""
    return _HUB_API if registry == DOCKER_HUB else registry


def normal_registry(host: str) -> str:
    """One name for each registry: Docker Hub's other names become `docker.io`."""
    host = host.lower()
    return DOCKER_HUB if host in (_HUB_API, _HUB_OLD, DOCKER_HUB) else host


@lru_cache(maxsize=256)
def parse_reference(text: str) -> Reference:
    """Read a reference; without tag and digest the tag is `latest`. Raises UsageError."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _refuse(text, f"{digest[:100]!r} is no sha256 digest of 64 lower-case hex digits")
    tag = ""
    if ":" in rest.rpartition("/")[2]:
        rest, _, tag = rest.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise _refuse(text, f"{tag[:130]!r} is no tag: 1 to 128 letters, digits, _ . and -")
    registry, repository = _split(rest)
    if not _HOST.fullmatch(registry):
        raise _refuse(text, f"{registry[:100]!r} is no host name")
    port = re.search(r":([0-9]+)$", registry)
    if port and not 0 < int(port[1]) < 1 << 16:
        raise _refuse(text, f"{port[1]} is no port")
    if not repository:
        raise _refuse(text, "it has no name")
    if not _REPOSITORY.fullmatch(repository):
        why = f"{repository[:100]!r} is no repository name"
        if repository != repository.lower():
            why += ": it must be in lower case"
        raise _refuse(text, why)
    if len(registry) + 1 + len(repository) > _LONGEST:
        raise _refuse(text, f"its name is longer than {_LONGEST} characters")
    if "/" not in rest and re.fullmatch(r"[0-9a-f]{64}", rest):
        raise _refuse(text, "64 hex digits are an image's id, not a name")
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def _split(name: str) -> tuple[str, str]:
    """Registry and repository of a name without tag and digest."""
    first, slash, rest = name.partition("/")
    lower = first.lower()
    is_host = any(ch in first for ch in ".:") or lower == "localhost"
    if slash and is_host:
        registry, repository = normal_registry(first), rest
    elif slash and first != lower:  # a host by its upper case alone, which it must keep
        registry, repository = first, rest
    else:
        registry, repository = DOCKER_HUB, name
    if registry == DOCKER_HUB and repository and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _refuse(text: str, why: str) -> UsageError:
    shown = text if len(text) <= 160 else text[:160] + "..."
    return UsageError(f"{shown!r} is no image reference: {why}", next_step=_FORM)
