"""The text of a Dockerfile: the same needs give the same text, one purpose a layer, every family's
own best practice. What comes from a recipe has been through its grammar and is quoted besides."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from pytest_sandbox.images.name import FAMILY_LABEL, HASH_LABEL, image_hash
from pytest_sandbox.images.repositories import KEYS, apt_source, dnf_source, ppa_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.images.requirements import Repository
    from pytest_sandbox.images.spec import ImageSpec

CERTIFICATES: Final = "certificates"
"""The folder of the build context that holds extra CA certificates."""

# Engines that give builds an unlimited number of open files make rpm close a billion of them.
_NOFILE: Final = "{ ulimit -n 65536 2>/dev/null || :; }"

_APT: Final = "-o APT::Update::Error-Mode=any -o Acquire::Retries=3 -o Acquire::Languages=none"


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


def install_commands(family: str, packages: Sequence[str]) -> list[str]:
    """Install the packages (sorted already): no questions, no recommendations, no stale indexes, no
    leftovers of the manager's cache."""
    if not packages:
        return []
    names = " ".join(shlex.quote(name) for name in packages)
    return _INSTALL[family](names)


def _apt(names: str) -> list[str]:
    # 101: services are not started by what installs them
    policy = (
        "RUN printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d "
        "&& chmod 0755 /usr/sbin/policy-rc.d"
    )
    install = (
        "RUN export DEBIAN_FRONTEND=noninteractive \\\n"
        f" && apt-get {_APT} update \\\n"
        f" && apt-get {_APT} -o Dpkg::Options::=--force-confold install -y "
        f"--no-install-recommends {names} \\\n"
        " && apt-get clean && rm -rf /var/lib/apt/lists/*"
    )
    return [policy, install]


def _dnf(names: str) -> list[str]:
    options = (
        "--setopt=install_weak_deps=False --setopt=tsflags=nodocs --setopt=retries=5 "
        "--setopt=max_parallel_downloads=10"
    )
    return [f"RUN {_NOFILE}; dnf -y {options} install {names} && dnf clean all"]


def _pacman(names: str) -> list[str]:
    # pacman's own sandbox needs Landlock, which an image build often lacks; the build is one
    sandbox = "RUN sed -i 's/^#DisableSandbox/DisableSandbox/' /etc/pacman.conf"
    install = f"pacman -Syu --noconfirm --needed {names} && rm -rf /var/cache/pacman/pkg/*"
    return [sandbox, f"RUN {_NOFILE}; {install}"]


def _apk(names: str) -> list[str]:
    return [f"RUN apk add --no-cache --no-progress {names}"]


def _zypper(names: str) -> list[str]:
    # 102 and 103 ask for a reboot or a restart of zypper; 106 skipped a repository and 107 lost a
    # package's script: such an image would be half of one.
    install = (
        f"RUN {_NOFILE}; zypper --non-interactive refresh \\\n"
        f" && {{ zypper --non-interactive install --no-recommends {names}; status=$?; \\\n"
        "    case $status in 0|102|103) ;; \\\n"
        "    106) echo 'zypper skipped a repository' >&2; exit $status ;; \\\n"
        "    107) echo 'a script of a package failed' >&2; exit $status ;; \\\n"
        "    *) exit $status ;; esac; } && zypper clean --all"
    )
    return [install]


_INSTALL: Final = {
    "debian": _apt,
    "rhel": _dnf,
    "arch": _pacman,
    "alpine": _apk,
    "suse": _zypper,
}


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
