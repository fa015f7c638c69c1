"""One GET of the host: what may be asked, whom it trusts, and whose fault a failure is."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from pytest_sandbox.errors import Blame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from urllib3 import BaseHTTPResponse
    from urllib3.connection import HTTPConnection
    from urllib3.util import Url

    from pytest_sandbox.plans.connections import Client

REDIRECTS: Final = 10
LONGEST_WAIT: Final = 60.0
_METADATA: Final = ("metadata.google.internal", "metadata", "instance-data")
_METADATA_ADDRESSES: Final = ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_ADDRESS_HELP: Final = "use an https address of a public server; http is for 127.0.0.1 and ::1 only"


class Failure(Exception):
    """Why one address did not give the file. `transient` failures are worth another try after
    `wait` seconds.
    """

    def __init__(
        self,
        what: str,
        blame: Blame,
        *,
        next_step: str = "",
        transient: bool = False,
        wait: float = 0.0,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.blame = blame
        self.next_step = next_step
        self.transient = transient
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with a body, redirects behind it; `url` is the address that gave it. `headers` are
    found in any case.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    blocks: Iterator[bytes]


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


def check_url(url: str, *, blame: Blame, come_from: str = "") -> Url:
    """Hold an address to the rules; `come_from` is the address that redirects to it. Raises
    Failure.

    https, or http from loopback; no password; no link-local or metadata address; only loopback
    leads to loopback. What is returned is what may be asked: nothing else reads the address again.
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
    if parsed.scheme == "http" and not local:
        why = "is plain http from another machine"
        raise refuse(why)
    if local and come_from and not is_loopback(host_of(parse_url(come_from))):
        why = "is this machine itself"
        raise refuse(why)
    if host.rstrip(".") in _METADATA or _is_forbidden(host):
        why = "is a link-local or metadata address"
        raise refuse(why)
    return parsed


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


def _is_forbidden(host: str) -> bool:
    address = address_of(host)
    if address is None:
        return False
    known = str(address) in _METADATA_ADDRESSES
    return known or address.is_link_local or address.is_multicast or address.is_unspecified


def trust(environ: Mapping[str, str], say: Callable[[str], None]) -> ssl.SSLContext:
    """The system's trust store, certifi's, and each CA file or folder of the environment."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(cafile=certifi.where())
    for name in _CA_VARIABLES:
        value = environ.get(name, "")
        for entry in value.split(":") if name == "SSL_CERT_DIR" else [value]:
            if not entry:
                continue
            path = Path(entry)
            try:
                if path.is_dir():
                    context.load_verify_locations(capath=entry)
                else:
                    context.load_verify_locations(cafile=entry)
            except (OSError, ssl.SSLError) as error:
                say(f"{name}={entry} cannot be used as CA certificates: {error}")
    return context


def check_peer(connection: HTTPConnection, scheme: str) -> None:
    """A name can lead anywhere: the address behind it must keep the rules too. Raises Failure."""
    host = str(connection.sock.getpeername()[0])
    if _is_forbidden(host) or (scheme == "http" and not is_loopback(host)):
        name = f"{scheme}://{connection.host}"
        what = f"{name} leads to the address {host}, which downloads may not use"
        raise Failure(what, Blame.UPSTREAM, next_step=_ADDRESS_HELP)


@contextmanager
def get(client: Client, url: str, headers: Mapping[str, str]) -> Iterator[Reply]:
    """One GET, redirects followed one by one, each under `check_url`; statuses 200, 206 and 416 get
    through.

    The blocks are as they were sent (no Content-Encoding is undone) and as they come. Raises
    Failure.
    """
    come_from, blame = "", Blame.RECIPE
    for _ in range(REDIRECTS + 1):
        parsed = check_url(url, blame=blame, come_from=come_from)
        with _failures(url), closing(client.ask(parsed, headers)) as response:
            if response.status in (301, 302, 303, 307, 308):
                location = response.headers.get("location", "")
                if not location:
                    what = f"{shown(url)} redirects to nowhere"
                    raise Failure(what, Blame.UPSTREAM)
                come_from, blame = url, Blame.UPSTREAM
                url = _join(url, location)
                continue
            if response.status not in (200, 206, 416):
                raise _bad_status(response, url)
            yield Reply(url, response.status, response.headers, _blocks(response))
            return
    what = f"{shown(url)} is the end of more than {REDIRECTS} redirects"
    raise Failure(what, Blame.UPSTREAM)


def _blocks(response: BaseHTTPResponse) -> Iterator[bytes]:
    # read1: a block is what is there; read would wait for a whole one, and no deadline would be met
    while block := response.read1(1 << 18, decode_content=False):
        yield block


def _join(url: str, location: str) -> str:
    from urllib3.util import parse_url

    with suppress(UnicodeError):  # http.client reads headers as Latin-1
        location = location.encode("latin-1").decode()
    try:
        return parse_url(urljoin(url, location))._replace(fragment=None).url
    except ValueError:
        what = f"{shown(url)} redirects to something that is no address"
        raise Failure(what, Blame.UPSTREAM) from None


def _bad_status(response: BaseHTTPResponse, url: str) -> Failure:
    status = response.status
    what = f"{shown(url)} answers {status} {response.reason or ''}".rstrip()
    limited = status == 403 and (
        "retry-after" in response.headers or response.headers.get("x-ratelimit-remaining") == "0"
    )
    if limited or status in (408, 425, 429) or status >= 500:
        return Failure(
            what,
            Blame.NETWORK,
            next_step="try again later",
            transient=True,
            wait=_retry_after(response.headers.get("retry-after", "")),
        )
    if status == 407:
        return Failure(
            what, Blame.HOST, next_step="give the proxy's user and password in https_proxy"
        )
    return Failure(what, Blame.UPSTREAM, next_step="correct the address in the recipe")


def _retry_after(value: str) -> float:
    """Seconds to wait, at most LONGEST_WAIT; 0 where the header says nothing of use."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        seconds = float(value)
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


@contextmanager
def _failures(url: str) -> Iterator[None]:
    """urllib3's errors as Failure."""
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, ConnectionError)):
            raise  # the disk's, not the connection's
        raise _explain(error, url) from error


def _explain(error: Exception, url: str) -> Failure:
    from urllib3 import exceptions as web

    causes = list(_causes(error))
    proxy = any(isinstance(cause, web.ProxyError) for cause in causes)  # it was not reached
    host = "the proxy of https_proxy" if proxy else urlsplit(url).hostname or ""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(
                f"the certificate of {host} is not trusted: {cause.verify_message}",
                Blame.HOST,
                next_step="put your network's CA certificate into the system's trust store, or name"
                " its file in SSL_CERT_FILE",
            )
        refusal = re.match(r"Tunnel connection failed: (.*)", str(cause))
        if refusal and isinstance(cause, OSError):
            what = f"{shown(url)}: the proxy refuses: {refusal[1]}"
            if refusal[1].startswith("407"):
                help = "give its user and password in https_proxy"
                return Failure(what, Blame.HOST, next_step=help)
            return Failure(what, Blame.NETWORK, next_step="check https_proxy", transient=True)
    last = str(causes[-1]) or type(causes[-1]).__name__
    what, next_step = f"{shown(url)}: {last}", "check the connection"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        what, next_step = f"the name {host} cannot be resolved", "check DNS, or set https_proxy"
    elif any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        what = f"{shown(url)}: connection refused"
    elif any(isinstance(cause, TimeoutError) for cause in causes):
        what = f"{shown(url)}: no answer in time ({type(error).__name__})"
    elif isinstance(error, web.ProtocolError):
        what = f"{shown(url)}: the connection was cut ({last})"
    if proxy:
        what, next_step = f"{what} (on the way to the proxy)", "check https_proxy"
    return Failure(what, Blame.NETWORK, next_step=next_step, transient=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
