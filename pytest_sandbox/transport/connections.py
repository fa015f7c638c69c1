"""The host's connections to servers: direct ones, and those through the environment's proxy."""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import unquote

from pytest_sandbox.errors import Blame
from pytest_sandbox.transport.addresses import (
    Failure,
    address_of,
    check_peer,
    host_of,
    is_loopback,
    may_be_plain,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    from urllib3 import BaseHTTPResponse, PoolManager, Timeout
    from urllib3.connection import HTTPConnection
    from urllib3.util import Url

_SOCKS: Final = ("socks5", "socks5h")
_HEADERS: Final = {
    "User-Agent": "pytest-sandbox",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True, slots=True)
class Client:
    """Connections to servers, `direct` or through the `proxy` for https; `exempt` are the entries
    of no_proxy, `plain` the hosts that may be asked without TLS. `trust` gives what direct https
    trusts, once it is needed. Leaving it as a context closes them. Safe for threads.
    """

    direct: PoolManager
    proxy: PoolManager | None
    exempt: tuple[str, ...]
    plain: frozenset[str] = frozenset()
    trust: Callable[[], ssl.SSLContext] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for manager in (self.direct, self.proxy):
            if manager is not None:
                for key in manager.pools.keys():  # noqa: SIM118 - it has no iterator
                    manager.pools[key].close()
                manager.clear()

    def ask(
        self,
        url: Url,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        body: bytes | IO[bytes] | Iterable[bytes] | None = None,
    ) -> BaseHTTPResponse:
        """One request without redirects and without retries; the reply's body is still to be read.

        `body` is sent as it is: a file from where it stands, with the Content-Length of `headers`.
        """
        host, scheme = host_of(url), url.scheme or ""
        port = (443 if scheme == "https" else 80) if url.port is None else url.port
        manager = self.direct
        # check_url lets http to loopback and to `plain` hosts only, which no proxy sees
        if self.proxy is not None and scheme == "https" and not is_loopback(host):
            exempt = any(_exempts(entry, host.rstrip("."), port) for entry in self.exempt)
            manager = self.direct if exempt else self.proxy
        late = None
        if scheme == "https" and manager is self.direct and self.trust is not None:
            late = {"ssl_context": self.trust()}
        pool = manager.connection_from_host(host, port, scheme, pool_kwargs=late)
        if manager is self.direct:
            pool.ConnectionCls = _checked_connection(scheme, may_be_plain(url, self.plain))
        return pool.urlopen(
            method,
            url.request_uri,
            body=body,
            headers={**_HEADERS, **headers},
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )


def open_client(
    environ: Mapping[str, str],
    context: ssl.SSLContext | Callable[[], ssl.SSLContext],
    timeout: float,
    *,
    plain: frozenset[str] = frozenset(),
    connections: int = 1,
) -> Client:
    """A client with the environment's proxies (never for loopback and `plain` hosts). Raises
    Failure for an impossible proxy.

    `context` is what https trusts. A function that gives it is asked when https is first used (to
    load it takes tens of milliseconds), and must always give the same one. `timeout` is how long a
    server may be silent, in seconds; `connections` how many to one server are kept for the next
    request.
    """
    from urllib3 import PoolManager, Timeout

    silence = Timeout(connect=timeout, read=timeout)
    late = context if callable(context) else None
    known = None if callable(context) else context
    proxies: dict[str, PoolManager] = {}
    for scheme in ("http", "https", "all"):
        variable = f"{scheme}_proxy"
        value = environ.get(variable) or environ.get(variable.upper()) or ""
        if not value:
            continue
        try:
            known = known or (late() if late else None)
            proxies[scheme] = _through(value, known, silence, connections)
        except (ValueError, ImportError):
            what = f"the proxy in {variable} cannot be used"  # its value may hold a password
            help = "write it as http://host:port (SOCKS needs the package urllib3[socks])"
            raise Failure(what, Blame.HOST, next_step=help) from None
    direct = PoolManager(ssl_context=known, timeout=silence, maxsize=connections)
    exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = (name.strip().lower() for name in exceptions.split(","))
    proxy = proxies.get("https") or proxies.get("all")
    return Client(direct, proxy, tuple(name for name in names if name), plain, late)


def _through(
    value: str, context: ssl.SSLContext | None, silence: Timeout, connections: int
) -> PoolManager:
    """The way through one proxy. Raises ValueError or ImportError where there is none."""
    from urllib3 import ProxyManager
    from urllib3.util import parse_url

    parsed = parse_url(value if "://" in value else f"http://{value}")
    user, _, password = (unquote(part) for part in (parsed.auth or "").partition(":"))
    address = parsed._replace(auth=None, path=None, query=None, fragment=None).url
    if not parsed.host:
        raise ValueError  # without the value: it may hold a password
    if parsed.scheme in _SOCKS:
        if find_spec("socks") is None:
            raise ImportError
        from urllib3.contrib.socks import SOCKSProxyManager

        return SOCKSProxyManager(
            address,
            user or None,
            password or None,
            ssl_context=context,
            timeout=silence,
            maxsize=connections,
        )
    secret = b64encode(f"{user}:{password}".encode()).decode()
    return ProxyManager(
        address,
        proxy_headers={"Proxy-Authorization": f"Basic {secret}"} if parsed.auth else None,
        proxy_ssl_context=context,
        ssl_context=context,
        timeout=silence,
        maxsize=connections,
    )


def _exempts(entry: str, host: str, port: int) -> bool:
    """Whether an entry of no_proxy covers a host: `*`, an address, a network, or a name with all
    below it (with a leading dot only those); each perhaps with a port.
    """
    if entry == "*":
        return True
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*):([0-9]+)", entry)
    if match and int(match[2]) != port:
        return False
    name = match[1] if match else entry
    try:
        network = ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        name = name.removeprefix("*")
        return host == name or host.endswith(name if name.startswith(".") else f".{name}")
    address = address_of(host)
    return address is not None and address in network


@cache
def _checked_connection(scheme: str, plain: bool) -> type[HTTPConnection]:
    """Connections that hold the address behind a name to the rules before they ask it."""
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            check_peer(self, "http", plain=plain)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            check_peer(self, "https")

    return Secure if scheme == "https" else Plain
