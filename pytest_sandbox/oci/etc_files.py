"""The files that an engine puts in front of an image: hosts, hostname, resolv.conf, and passwd and
group where the image has none.

They are written to a folder of the sandbox and bound over the image's; no layer is edited. The
sandbox's root may write them, as under Docker.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import UsageError
from pytest_sandbox.oci.spec.mounts import Bind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_sandbox.oci.spec.generate import NetworkMode
    from pytest_sandbox.oci.spec.users import User

TARGETS: Final = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_LOCAL: Final = re.compile(r"127\.|::1$|0\.0\.0\.0$|::$|fe80:", re.IGNORECASE)
_RESOLV_LIMIT: Final = 64 << 10


def hosts_text(hostname: str, address: str = "", extra: Sequence[tuple[str, str]] = ()) -> str:
    """/etc/hosts: the loopback names, `hostname` at `address` (at 127.0.0.1 where the sandbox has
    none of its own), then `extra` as (name, address).
    """
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "ff00::0\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    lines += [f"{target}\t{_one_line(name)}" for name, target in extra]
    if hostname:
        lines.append(f"{address or '127.0.0.1'}\t{_one_line(hostname)}")
    return "\n".join(lines) + "\n"


def hostname_text(hostname: str) -> str:
    """/etc/hostname."""
    return _one_line(hostname) + "\n" if hostname else ""


def resolv_text(network: NetworkMode, host: str, nameservers: Sequence[str] = ()) -> str:
    """/etc/resolv.conf. `host` is the text of the host's.

    "host": the host's own. "bridge": `nameservers` (those of the user-mode stack), with the host's
    search and options lines; without any, the host's servers that are not its own loopback, which a
    sandbox cannot reach. Raises UsageError where none is left. "none": no server.
    """
    if network == "host":
        return host
    if network == "none":
        return "# this sandbox has no network\n"
    kept, servers = [], []
    for line in host.splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain", "options"):
            kept.append(line)
        elif len(words) > 1 and words[0] == "nameserver" and not _LOCAL.match(words[1]):
            servers.append(words[1])
    if not (nameservers or servers):
        msg = "the host's resolv.conf names only servers on its own loopback"
        raise UsageError(msg, next_step="name a server for the sandbox")
    lines = [f"nameserver {_one_line(server)}" for server in (nameservers or servers)]
    return "\n".join([*lines, *kept]) + "\n"


def host_resolv_conf(path: str = "/etc/resolv.conf") -> str:
    """The text of the host's resolv.conf (at most 64 KiB of it); "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read(_RESOLV_LIMIT)
    except OSError:
        return ""


def account_text(path: str, user: User) -> str:
    """/etc/passwd or /etc/group for an image that has none: root, nobody and the sandbox's user."""
    if path == "/etc/passwd":
        lines = ["root:x:0:0:root:/root:/bin/sh", "nobody:x:65534:65534:nobody:/:/sbin/nologin"]
        if user.uid not in (0, 65534):
            lines.append(f"user:x:{user.uid}:{user.gid}:user:{user.home}:/bin/sh")
    else:
        lines = ["root:x:0:", "nogroup:x:65534:"]
        if user.gid not in (0, 65534):
            lines.append(f"user:x:{user.gid}:")
    return "\n".join(lines) + "\n"


def engine_binds(folder: str) -> list[Bind]:
    """The binds of hosts, hostname and resolv.conf from `folder` (the sandbox's own)."""
    return [_bind(folder, target) for target in TARGETS]


def account_binds(folder: str, missing: Sequence[str]) -> list[Bind]:
    """The binds of the account files that the image lacks (`Prepared.missing`)."""
    return [_bind(folder, target) for target in missing]


def write_files(
    folder: Path, texts: Mapping[str, str], owner: tuple[int, int] | None = None
) -> None:
    """Write target -> text into `folder`, readable for everybody. `owner` is the host's uid and gid
    of the sandbox's root, where this process may give files to it.
    """
    for target, text in texts.items():
        path = folder / target.rpartition("/")[2]
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        path.chmod(0o644)
        if owner is not None:
            os.chown(path, *owner)


def _bind(folder: str, target: str) -> Bind:
    name = target.rpartition("/")[2]
    return Bind(f"{folder}/{name}", target, read_only=False, folder=False)


def _one_line(text: str) -> str:
    if not text.isprintable() or " " in text:
        msg = f"{text!r} is no host name or address"
        raise UsageError(msg, next_step="leave out white space and control characters")
    return text
