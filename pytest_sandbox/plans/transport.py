"""One GET of the host: what may be asked, whom it trusts, and whose fault a failure is."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pytest_sandbox.errors import Blame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import httpx

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
    """An answer with a body, redirects behind it; `url` is the address that gave it."""

    url: str
    status: int
    headers: httpx.Headers
    blocks: Iterator[bytes]


def shown(url: str) -> str:
    """An address for people: without its query, which may hold a signature or a token, and without
    a password.
    """
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return url.partition("?")[0]
    return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")


def check_url(url: str, *, blame: Blame, come_from: str = "") -> httpx.URL:
    """Hold an address to the rules; `come_from` is the address that redirects to it. Raises
    Failure.

    https, or http from loopback; no password; no link-local or metadata address; only loopback
    leads to loopback.
    """
    import httpx

    def refuse(why: str) -> Failure:
        through = f" (redirected from {shown(come_from)})" if come_from else ""
        return Failure(f"{shown(url)} {why}{through}", blame, next_step=_ADDRESS_HELP)

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        why = f"is no address: {error}"
        raise refuse(why) from error
    if not re.fullmatch(rb"[a-z0-9._-]*|[0-9a-f:.]+", parsed.raw_host):
        why = "is no address: its host is no name"
        raise refuse(why)
    if parsed.userinfo:
        why = "carries a user name or password"
        raise refuse(why)
    if parsed.scheme not in ("https", "http") or not parsed.host:
        why = "is no https address"
        raise refuse(why)
    local = _is_loopback(parsed.host)
    if parsed.scheme == "http" and not local:
        why = "is plain http from another machine"
        raise refuse(why)
    if local and come_from and not _is_loopback(httpx.URL(come_from).host):
        why = "is this machine itself"
        raise refuse(why)
    if parsed.host.lower().rstrip(".") in _METADATA or _is_forbidden(parsed.host):
        why = "is a link-local or metadata address"
        raise refuse(why)
    return parsed


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host.lower() == "localhost"


def _is_forbidden(host: str) -> bool:
    address = _address(host)
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


def open_client(
    environ: Mapping[str, str], context: ssl.SSLContext, timeout: float
) -> httpx.Client:
    """A client with the environment's proxies (never for loopback). Raises Failure for an
    impossible proxy.
    """
    import httpx

    mounts: dict[str, httpx.BaseTransport | None] = {}
    for scheme in ("http", "https", "all"):
        variable = f"{scheme}_proxy"
        value = environ.get(variable) or environ.get(variable.upper()) or ""
        if not value:
            continue
        try:
            address = value if "://" in value else f"http://{value}"
            secure = context if address.startswith("https:") else None
            proxy = httpx.Proxy(address, ssl_context=secure)
            mounts[f"{scheme}://"] = httpx.HTTPTransport(
                verify=context, proxy=proxy, trust_env=False
            )
        except (httpx.InvalidURL, ValueError, ImportError):
            what = f"the proxy in {variable} cannot be used"  # its value may hold a password
            help = "write it as http://host:port (SOCKS needs the package httpx[socks])"
            raise Failure(what, Blame.HOST, next_step=help) from None
    if mounts:
        exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        names = [name.strip().lower() for name in exceptions.split(",")]
        if "*" in names:
            mounts.clear()
        mounts |= {_pattern(name): None for name in names if name and name != "*"}
    return httpx.Client(
        transport=httpx.HTTPTransport(verify=context, trust_env=False),
        mounts={**mounts, "all://localhost": None},
        trust_env=False,
        follow_redirects=False,
        timeout=timeout,
        headers={"User-Agent": "pytest-sandbox", "Accept-Encoding": "identity"},
    )


def _pattern(name: str) -> str:
    """httpx's writing of a `no_proxy` entry: a host and everything below it."""
    address = _address(name.strip("[]"))
    if address is not None:
        return f"all://[{address}]" if address.version == 6 else f"all://{address}"
    return f"all://{name}" if name == "localhost" else f"all://*{name}"


@contextmanager
def get(
    clients: tuple[httpx.Client, httpx.Client], url: str, headers: Mapping[str, str]
) -> Iterator[Reply]:
    """One GET, redirects followed one by one, each under `check_url`; statuses 200, 206 and 416 get
    through.

    `clients` are the one for loopback and the one for other machines. Raises Failure.
    """
    come_from, blame = "", Blame.RECIPE
    for _ in range(REDIRECTS + 1):
        parsed = check_url(url, blame=blame, come_from=come_from)
        client = clients[0] if _is_loopback(parsed.host) else clients[1]
        with _failures(url), client.stream("GET", parsed, headers=dict(headers)) as response:
            _check_peer(response, url)
            if response.status_code in (301, 302, 303, 307, 308):
                location = response.headers.get("location", "")
                if not location:
                    what = f"{shown(url)} redirects to nowhere"
                    raise Failure(what, Blame.UPSTREAM)
                come_from, blame = url, Blame.UPSTREAM
                url = _join(url, location)
                continue
            if response.status_code not in (200, 206, 416):
                raise _bad_status(response, url)
            yield Reply(url, response.status_code, response.headers, response.iter_raw(1 << 18))
            return
    what = f"{shown(url)} is the end of more than {REDIRECTS} redirects"
    raise Failure(what, Blame.UPSTREAM)


def _join(url: str, location: str) -> str:
    import httpx

    try:
        return str(httpx.URL(url).join(location).copy_with(fragment=None))
    except (httpx.InvalidURL, ValueError) as error:
        what = f"{shown(url)} redirects to something that is no address"
        raise Failure(what, Blame.UPSTREAM) from error


def _check_peer(response: httpx.Response, url: str) -> None:
    """A name can lead anywhere: the address behind it must keep the rules too."""
    stream = response.extensions.get("network_stream")
    peer = stream.get_extra_info("server_addr") if stream is not None else None
    if not isinstance(peer, tuple):
        return
    host = str(peer[0])
    if _is_forbidden(host) or (response.url.scheme == "http" and not _is_loopback(host)):
        what = f"{shown(url)} leads to the address {host}, which downloads may not use"
        raise Failure(what, Blame.UPSTREAM, next_step=_ADDRESS_HELP)


def _bad_status(response: httpx.Response, url: str) -> Failure:
    status = response.status_code
    what = f"{shown(url)} answers {status} {response.reason_phrase}".rstrip()
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
    """httpx's errors as Failure."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, ConnectionError)):
            raise  # the disk's, not the connection's
        raise _explain(error, url) from error


def _explain(error: Exception, url: str) -> Failure:
    import httpx

    host = urlsplit(url).hostname or ""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(
                f"the certificate of {host} is not trusted: {cause.verify_message}",
                Blame.HOST,
                next_step="put your network's CA certificate into the system's trust store, or name"
                " its file in SSL_CERT_FILE",
            )
    what, next_step = f"{shown(url)}: {str(error) or type(error).__name__}", "check the connection"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        what, next_step = f"the name {host} cannot be resolved", "check DNS, or set https_proxy"
    elif any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        what = f"{shown(url)}: connection refused"
    elif isinstance(error, httpx.TimeoutException):
        what = f"{shown(url)}: no answer in time ({type(error).__name__})"
    elif isinstance(error, httpx.ProxyError):
        what, next_step = f"{shown(url)}: the proxy refuses: {error}", "check https_proxy"
        if str(error).startswith("407"):
            return Failure(what, Blame.HOST, next_step="give its user and password in https_proxy")
    elif isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        what = f"{shown(url)}: the connection was cut ({str(error) or type(error).__name__})"
    return Failure(what, Blame.NETWORK, next_step=next_step, transient=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
