"""The text of a Dockerfile: the same needs give the same text, one purpose a layer, every family's
own best practice. What comes from a recipe has been through its grammar and is quoted besides."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from pytest_sandbox.images.installing import install_commands
from pytest_sandbox.images.name import FAMILY_LABEL, HASH_LABEL, image_hash
from pytest_sandbox.images.repositories import KEYS, apt_source, dnf_source, ppa_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.images.requirements import Repository
    from pytest_sandbox.images.spec import ImageSpec

CERTIFICATES: Final = "certificates"
"""The folder of the build context that holds extra CA certificates."""


def dockerfile(spec: ImageSpec) -> str:
    """The whole text, with a final newline; a plain spec is its FROM line."""
    lines = [f"FROM {spec.base}"]
    if not spec.plain:
        lines.append(
            f'LABEL {FAMILY_LABEL}="{spec.target.family}" {HASH_LABEL}="{image_hash(spec)}"'
        )
    return "\n".join([*lines, *spec.commands]) + "\n"


def context_names(spec: ImageSpec) -> tuple[str, ...]:
    """The names of all files of the build context; nothing else may be in it."""
    if spec.plain:
        return ("Dockerfile",)
    return (
        "Dockerfile",
        *(certificate_name(index) for index in range(len(spec.certificates))),
        *(f"{KEYS}/{key.name}" for key in spec.keys),
    )


def certificate_name(index: int) -> str:
    """The name in the build context of the certificate with this index (from 0)."""
    return f"{CERTIFICATES}/pytest-sandbox-{index:02}.crt"


_ANCHORS: Final = {
    # family: (folder of anchors, command that reads it, bundle to append to where it is missing)
    "debian": (
        "/usr/local/share/ca-certificates",
        "update-ca-certificates",
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "alpine": (
        "/usr/local/share/ca-certificates",
        "update-ca-certificates",
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "rhel": (
        "/etc/pki/ca-trust/source/anchors",
        "update-ca-trust",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ),
    "arch": (
        "/etc/ca-certificates/trust-source/anchors",
        "update-ca-trust",
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "suse": (
        "/etc/pki/trust/anchors",
        "update-ca-certificates",
        "/var/lib/ca-certificates/ca-bundle.pem",
    ),
}


def certificate_commands(family: str, count: int) -> list[str]:
    """Trust the host's extra CA certificates, before anything is downloaded."""
    if not count:
        return []
    folder, update, bundle = _ANCHORS[family]
    parent = bundle.rpartition("/")[0]
    trust = (
        f"RUN if command -v {update} >/dev/null 2>&1; then {update}; \\\n"
        f"    else mkdir -p {parent} && cat {folder}/pytest-sandbox-*.crt >> {bundle}; fi"
    )
    return [f"COPY {CERTIFICATES}/ {folder}/", trust]


def repository_commands(family: str, repositories: Sequence[Repository]) -> list[str]:
    """The family's package sources; the others' are for the spec to refuse."""
    found = []
    if family == "debian":
        ppas = [one.ppa for one in repositories if one.kind == "ppa"]
        sources = [one for one in repositories if one.kind == "repo"]
        tools = ["software-properties-common", "ca-certificates"] if ppas else []
        if any(one.url.startswith("https:") for one in sources):
            tools.append("ca-certificates")
        if tools:
            found += install_commands(family, tuple(sorted(set(tools))))
        found += [apt_source(one) for one in sources]
        if ppas:
            found.append(ppa_sources(ppas))
    elif family == "rhel":
        found += [dnf_source(one) for one in repositories]
    return found


def group_commands(groups: Sequence[str]) -> list[str]:
    """Add system groups that no package has added; a minimal Debian has no tool for that."""
    if not groups:
        return []
    command = (
        f"RUN for group in {' '.join(shlex.quote(group) for group in groups)}; do \\\n"
        '    if grep -q "^$group:" /etc/group; then continue; fi; \\\n'
        '    if command -v groupadd >/dev/null 2>&1; then groupadd -r "$group" || exit 1; \\\n'
        '    elif command -v addgroup >/dev/null 2>&1; then addgroup -S "$group" || exit 1; \\\n'
        '    else id=999; while grep -q ":$id:" /etc/group; do id=$((id - 1)); done; \\\n'
        '    echo "$group:x:$id:" >> /etc/group; fi; done'
    )
    return [command]
