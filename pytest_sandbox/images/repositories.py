"""Package sources in an image: each has a keyring of its own, which no other source trusts."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_sandbox.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.images.requirements import Repository

KEYS: Final = "keys"
"""The folder of the build context that holds the keys."""

_APT_KEYRINGS: Final = "/etc/apt/keyrings"
_RPM_KEYS: Final = "/etc/pki/rpm-gpg"


class KeyFile(msgspec.Struct, frozen=True, order=True):
    """A repository's key: when it builds, the host downloads `url`, holds it against `sha256`, and
    puts it into the build context as `keys/<name>`."""

    url: str
    sha256: str
    name: str


def key_files(repositories: Iterable[Repository]) -> tuple[KeyFile, ...]:
    """The keys of the repositories, each once. Named by content: the order changes nothing."""
    found = {
        KeyFile(one.key_url, one.key_sha256, f"{one.key_sha256[:16]}.key")
        for one in repositories
        if one.kind == "repo"
    }
    return tuple(sorted(found))


def apt_source(repository: Repository) -> str:
    """The instructions for one apt repository: deb822 with Signed-By.

    apt tells armoured keys from binary ones by the file's suffix, so that is set by content.
    """
    key = f"{repository.key_sha256[:16]}.key"
    name = f"pytest-sandbox-{_source_id(repository)}"
    ring = f"{_APT_KEYRINGS}/{name}"
    suite = repository.suite or "./"
    lines = ["Types: deb", f"URIs: {repository.url}", f"Suites: {suite}"]
    if repository.components:
        lines.append(f"Components: {' '.join(repository.components)}")
    elif not suite.endswith("/"):
        msg = f"apt_repo {repository.url}: the suite {suite!r} needs components"
        next_step = 'write url = "URL SUITE COMPONENT", or a suite that ends in /'
        raise SpecError(msg, next_step=next_step)
    written = " ".join(shlex.quote(line) for line in lines)
    source = f"/etc/apt/sources.list.d/{name}.sources"
    return (
        f"COPY {KEYS}/{key} {ring}.key\n"
        f"RUN if grep -q 'BEGIN PGP PUBLIC KEY' {ring}.key; then ring={ring}.asc; "
        f"else ring={ring}.gpg; fi \\\n"
        f' && mv {ring}.key "$ring" && chmod 0644 "$ring" \\\n'
        f" && printf '%s\\n' {written} \"Signed-By: $ring\" > {source}"
    )


def dnf_source(repository: Repository) -> str:
    """The instructions for one dnf repository: packages must be signed with the verified key."""
    if repository.url.endswith(".repo"):
        msg = f"dnf_repo {repository.url}: a .repo file brings its own, unverified keys"
        raise SpecError(msg, next_step="write the base URL that stands in that file")
    key = f"{repository.key_sha256[:16]}.key"
    name = f"pytest-sandbox-{_source_id(repository)}"
    lines = [
        f"[{name}]",
        f"name={name}",
        f"baseurl={repository.url}",
        "enabled=1",
        "gpgcheck=1",
        f"gpgkey=file://{_RPM_KEYS}/{name}",
    ]
    written = " ".join(shlex.quote(line) for line in lines)
    return (
        f"COPY {KEYS}/{key} {_RPM_KEYS}/{name}\n"
        f"RUN printf '%s\\n' {written} > /etc/yum.repos.d/{name}.repo"
    )


def ppa_sources(names: Iterable[str]) -> str:
    """The instruction for Launchpad archives. Their keys come from Launchpad by Ubuntu's own
    tool: a recipe gives no hash of them."""
    added = " \\\n && ".join(
        f"add-apt-repository -y --no-update {shlex.quote(f'ppa:{name}')}" for name in names
    )
    return f"RUN export DEBIAN_FRONTEND=noninteractive \\\n && {added}"


def _source_id(repository: Repository) -> str:
    from hashlib import sha256

    words = (
        repository.url,
        repository.suite,
        *repository.components,
        repository.key_url,
        repository.key_sha256,
    )
    return sha256("\n".join(words).encode()).hexdigest()[:8]
