"""Published ports: what `-p` says, and the host's sockets for it.

The grammar is Docker's: `[[ADDRESS:]HOST:]PORT[/tcp|/udp]`, where HOST may be empty or 0 (any free
port) and HOST and PORT may be ranges of one length. An IPv6 address stands in brackets. Unlike
Docker, an address that is not given means 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import SandboxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LOOPBACK: Final = "127.0.0.1"
PROTOCOLS: Final = ("tcp", "udp")
_SHAPE: Final = "[[ADDRESS:]HOST:]PORT[/tcp|/udp], as 8080:80, 127.0.0.1:5353:53/udp or [::1]::80"
_MOST: Final = 1000
"""So many ports one `-p` may name: each is a socket of its own."""


@dataclass(frozen=True, slots=True)
class Port:
    """One published port. `host` 0 stands for any free one; `address` is the host's."""

    container: int
    host: int = 0
    address: str = LOOPBACK
    protocol: str = "tcp"

    @property
    def outside(self) -> str:
        """`ADDRESS:PORT` on the host, an IPv6 address in brackets."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.host}"

    def __str__(self) -> str:
        """As `docker ps` shows it: `127.0.0.1:8080->80/tcp`."""
        return f"{self.outside}->{self.container}/{self.protocol}"


def parse_ports(text: str) -> tuple[Port, ...]:
    """The ports that one `-p` names. Raises UsageError, which says what it should look like."""
    rest, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise _bad(text, f"{protocol!r} is no protocol: tcp or udp")
    address, host, container = _split(text, rest)
    inside = _range(text, container, low=1)
    outside = _range(text, host, low=0) if host else range(1)
    if outside == range(1):
        return tuple(Port(number, 0, address, protocol) for number in inside)
    if len(inside) != len(outside):
        raise _bad(text, f"{host} and {container} are ranges of different lengths")
    return tuple(
        Port(ours, theirs, address, protocol) for ours, theirs in zip(inside, outside, strict=True)
    )


def _split(text: str, rest: str) -> tuple[str, str, str]:
    """(address, host part, container part)."""
    if rest.startswith("["):
        address, bracket, rest = rest[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise _bad(text, "after [ADDRESS] stands :HOST:PORT")
        parts = rest[1:].split(":")
        if len(parts) != 2:
            raise _bad(text, "after [ADDRESS] stands :HOST:PORT")
        family = socket.AF_INET6
    else:
        parts = rest.split(":")
        if len(parts) > 3:
            raise _bad(text, "it has too many colons; an IPv6 address stands in brackets")
        address = parts.pop(0) if len(parts) == 3 else ""
        family = socket.AF_INET
    if address or family == socket.AF_INET6:
        try:
            packed = socket.inet_pton(family, address)
        except (OSError, ValueError):
            kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
            raise _bad(text, f"{address!r} is no {kind} address") from None
        address = socket.inet_ntop(family, packed)
    return address or LOOPBACK, parts[0] if len(parts) == 2 else "", parts[-1]


def _range(text: str, part: str, *, low: int) -> range:
    first, dash, last = part.partition("-")
    numbers = []
    for word in (first, last) if dash else (first,):
        if not (word.isascii() and word.isdigit() and len(word) <= 5):
            raise _bad(text, f"{part!r} is no port" if part else "the sandbox's port is missing")
        if not low <= int(word) <= 65535:
            raise _bad(text, f"port {word} is not between {low} and 65535")
        numbers.append(int(word))
    if numbers[-1] < numbers[0] or (dash and numbers[0] == 0):
        raise _bad(text, f"{part!r} is no range of ports")
    if numbers[-1] - numbers[0] >= _MOST:
        raise _bad(text, f"{part!r} is more than {_MOST} ports")
    return range(numbers[0], numbers[-1] + 1)


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"-p {text!r}: {why}", next_step=f"write it as {_SHAPE}")


def open_ports(ports: Iterable[Port]) -> list[tuple[Port, socket.socket]]:
    """Bind the host's side of each port: listening for tcp, not blocking; `host` filled in.

    Raises SandboxError for one that cannot be had; nothing stays open then.
    """
    opened: list[tuple[Port, socket.socket]] = []
    try:
        for port in ports:
            opened.append(_open(port, [known for known, _ in opened]))
    except BaseException:
        for _, sock in opened:
            sock.close()
        raise
    return opened


def _open(port: Port, known: Sequence[Port]) -> tuple[Port, socket.socket]:
    family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    sock = None
    try:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((port.address, port.host))
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
        return replace(port, host=sock.getsockname()[1]), sock
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _refused(port, error, known) from error


def _refused(port: Port, error: OSError, known: Sequence[Port]) -> SandboxError:
    name = f"port {port.outside}/{port.protocol}"
    free = f"give another one, or -p {port.container} for any free one"
    if error.errno == errno.EADDRINUSE and any(
        (other.host, other.protocol) == (port.host, port.protocol) for other in known
    ):
        return SandboxError(f"{name} is published twice", next_step="publish it once")
    if error.errno == errno.EADDRINUSE:
        what = f"{name} of the host is already in use"
        return SandboxError(what, next_step=f"end what uses it, {free}")
    if error.errno in {errno.EACCES, errno.EPERM}:
        what = f"{name} of the host cannot be opened by this user: ports below {_lowest()} are not"
        step = f"{free}, or as root: sysctl net.ipv4.ip_unprivileged_port_start={port.host}"
        return SandboxError(f"{what} for ordinary users", next_step=step)
    if error.errno == errno.EADDRNOTAVAIL:
        step = "give an address of this host (ip address shows them), or leave it out"
        return SandboxError(f"{name}: no address of this host", next_step=step)
    if error.errno == errno.EAFNOSUPPORT:
        what = f"{name}: this host has no IPv6"
        return SandboxError(what, next_step="publish it on an IPv4 address")
    return SandboxError(f"{name} cannot be opened: {error.strerror}", next_step=free)


def _lowest() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    return 1024
