"""What may be asked of the network: the rules for addresses, and why one of them failed."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pytest_sandbox.errors import Blame

if TYPE_CHECKING:
    from collections.abc import Collection

    from urllib3.connection import HTTPConnection
    from urllib3.util import Url

_METADATA: Final = ("metadata.google.internal", "metadata", "instance-data")
_METADATA_ADDRESSES: Final = ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")
_ADDRESS_HELP: Final = "use an https address of a public server; http is for 127.0.0.1 and ::1 only"


class Failure(Exception):
    """Why one address did not give what was asked for. `transient` failures are worth another try
    after `wait` seconds. `status` is that of the answer, 0 where there was none.
    """

    def __init__(
        self,
        what: str,
        blame: Blame,
        *,
        next_step: str = "",
        transient: bool = False,
        wait: float = 0.0,
        status: int = 0,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.blame = blame
        self.next_step = next_step
        self.transient = transient
        self.wait = wait
        self.status = status


def shown(url: str) -> str:
    """An address for people: without its query, which may hold a signature or a token, and without
    a password.
    """
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return re.sub(r"//[^/]*@", "//", url.partition("?")[0])
    return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")


def check_url(url: str, *, blame: Blame, come_from: str = "", plain: Collection[str] = ()) -> Url:
    """Hold an address to the rules; `come_from` is the address that redirects to it. Raises
    Failure.

    https, or http from loopback or from a host of `plain` (`host` or `host:port`); no password; no
    link-local or metadata address; only loopback leads to loopback. What is returned is what may
    be asked: nothing else reads the address again.
    """
    from urllib3.util import parse_url

    def refuse(why: str) -> Failure:
        through = f" (redirected from {shown(come_from)})" if come_from else ""
        return Failure(f"{shown(url)} {why}{through}", blame, next_step=_ADDRESS_HELP)

    try:
        parsed = parse_url("" if re.search(r"[\x00-\x1f\x7f]", url) else url)
    except ValueError:  # its text holds the whole address
        parsed = parse_url("")
    if not parsed.url:
        why = "is no address"
        raise refuse(why)
    host = host_of(parsed)
    if not re.fullmatch(r"([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{0,63}|[0-9a-f:.]+", host):
        why = "is no address: its host is no name"
        raise refuse(why)
    if parsed.auth:
        why = "carries a user name or password"
        raise refuse(why)
    if parsed.scheme not in ("https", "http") or not host:
        why = "is no https address"
        raise refuse(why)
    local = is_loopback(host)
    if parsed.scheme == "http" and not local and not may_be_plain(parsed, plain):
        why = "is plain http from another machine"
        raise refuse(why)
    if local and come_from and not is_loopback(host_of(parse_url(come_from))):
        why = "is this machine itself"
        raise refuse(why)
    if host.rstrip(".") in _METADATA or is_forbidden(host):
        why = "is a link-local or metadata address"
        raise refuse(why)
    return parsed


def may_be_plain(url: Url, plain: Collection[str]) -> bool:
    """Whether a host may be asked without TLS although it is another machine."""
    host = (url.host or "").lower()
    return host in plain or f"{host}:{80 if url.port is None else url.port}" in plain


def origin_of(url: Url) -> str:
    """Scheme, host and port of an address, in one spelling: what credentials are keyed to."""
    port = (443 if url.scheme == "https" else 80) if url.port is None else url.port
    return f"{url.scheme}://{(url.host or '').lower()}:{port}"


def host_of(url: Url) -> str:
    """The host without the brackets of IPv6, empty if there is none."""
    return (url.host or "").strip("[]")


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, IPv4 where it is mapped into IPv6; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its address or as `localhost`."""
    address = address_of(host)
    return address.is_loopback if address else host.lower() == "localhost"


def is_forbidden(host: str) -> bool:
    """Whether a host is an address that nothing may be asked of: link-local, metadata, multicast or
    none. Private addresses are not.
    """
    address = address_of(host)
    if address is None:
        return False
    known = str(address) in _METADATA_ADDRESSES
    return known or address.is_link_local or address.is_multicast or address.is_unspecified


def check_peer(connection: HTTPConnection, scheme: str, *, plain: bool = False) -> None:
    """A name can lead anywhere: the address behind it must keep the rules too. Raises Failure.

    `plain` lets http go to another machine.
    """
    host = str(connection.sock.getpeername()[0])
    outside = scheme == "http" and not plain and not is_loopback(host)
    if is_forbidden(host) or outside:
        name = f"{scheme}://{connection.host}"
        what = f"{name} leads to the address {host}, which may not be asked"
        raise Failure(what, Blame.UPSTREAM, next_step=_ADDRESS_HELP)
