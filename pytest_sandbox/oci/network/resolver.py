"""What stands in a sandbox's resolv.conf (resolv.conf(5)) when its network is a user-mode stack."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final

from pytest_sandbox.oci.network.tap import RESOLVER

HOST: Final = Path("/etc/resolv.conf")
_MOST: Final = 3
"""So many name servers a C library asks (MAXNS)."""


def host_text(path: Path = HOST) -> str:
    """The host's resolv.conf; empty where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def name_servers(text: str) -> list[str]:
    """The IPv4 name servers of a resolv.conf, in their order."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(OSError, ValueError):
                socket.inet_pton(socket.AF_INET, words[1])
                servers.append(words[1])
    return servers


def for_sandbox(text: str, *, forwarded: bool) -> tuple[str, list[str]]:
    """(a sandbox's resolv.conf, notes) from the host's.

    The stack's own forwarder comes first, where it has a name server to ask: it reaches one on
    the host's loopback, as systemd-resolved's 127.0.0.53. Then those that the sandbox reaches
    itself. Search domains and options are kept.
    """
    servers = name_servers(text)
    chosen = [RESOLVER] if forwarded and servers else []
    chosen += [server for server in servers if _reachable(server) and server not in chosen]
    notes = []
    if not chosen:
        why = "has no IPv4 name server that a sandbox reaches"
        notes.append(f"no DNS in the sandbox: the host's {HOST} {why}")
    lines = [f"nameserver {server}" for server in chosen[:_MOST]]
    for line in text.splitlines():
        if line.split()[:1] in (["search"], ["domain"], ["options"]):
            lines.append(" ".join(line.split()))
    return "".join(f"{line}\n" for line in lines), notes


def _reachable(server: str) -> bool:
    """Whether the filter of tap.py lets a sandbox ask this one."""
    return not (server.startswith(("0.", "127.", "169.254.", "10.0.2.")) or server == "0.0.0.0")
