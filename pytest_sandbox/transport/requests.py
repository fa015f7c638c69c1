"""One GET of the host: whom it trusts, how redirects are followed, and whose fault a failure is."""

from __future__ import annotations

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
from pytest_sandbox.transport.addresses import Failure, check_url, is_loopback, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from urllib3 import BaseHTTPResponse

    from pytest_sandbox.transport.connections import Client

REDIRECTS: Final = 10
LONGEST_WAIT: Final = 60.0
_NO_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with a body, redirects behind it; `url` is the address that gave it. `headers` are
    found in any case.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    blocks: Iterator[bytes]


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
        with failures(url), closing(client.ask(parsed, headers)) as response:
            if response.status in (301, 302, 303, 307, 308):
                location = response.headers.get("location", "")
                if not location:
                    what = f"{shown(url)} redirects to nowhere"
                    raise Failure(what, Blame.UPSTREAM)
                come_from, blame = url, Blame.UPSTREAM
                url = join(url, location)
                continue
            if response.status not in (200, 206, 416):
                raise _bad_status(response, url)
            yield Reply(url, response.status, response.headers, blocks(response))
            return
    what = f"{shown(url)} is the end of more than {REDIRECTS} redirects"
    raise Failure(what, Blame.UPSTREAM)


def blocks(response: BaseHTTPResponse) -> Iterator[bytes]:
    """The body as it was sent and as it comes, at most 256 KiB at a time."""
    # read1: a block is what is there; read would wait for a whole one, and no deadline would be met
    while block := response.read1(1 << 18, decode_content=False):
        yield block


def join(url: str, location: str) -> str:
    """The address that a redirect of `url` leads to. Raises Failure where it is none."""
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
            wait=min(retry_after(response.headers.get("retry-after", "")), LONGEST_WAIT),
        )
    if status == 407:
        return Failure(
            what, Blame.HOST, next_step="give the proxy's user and password in https_proxy"
        )
    return Failure(what, Blame.UPSTREAM, next_step="correct the address in the recipe")


def retry_after(value: str) -> float:
    """Seconds to wait by a Retry-After header; 0 where it says nothing of use."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        seconds = float(value)
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(seconds, 0.0)


@contextmanager
def failures(url: str) -> Iterator[None]:
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
    transient = True
    names = [cause for cause in causes if isinstance(cause, socket.gaierror)]
    if names:
        what, next_step = f"the name {host} cannot be resolved", "check DNS, or set https_proxy"
        # There is no such name. Where nobody could be asked, it is EAI_AGAIN.
        transient = all(cause.errno not in _NO_NAME for cause in names)
    elif any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        what = f"{shown(url)}: connection refused"
        transient = proxy or not is_loopback(host)  # nobody listens on this machine
    elif any(isinstance(cause, TimeoutError) for cause in causes):
        what = f"{shown(url)}: no answer in time ({type(error).__name__})"
    elif isinstance(error, web.ProtocolError):
        what = f"{shown(url)}: the connection was cut ({last})"
    if proxy:
        what, next_step = f"{what} (on the way to the proxy)", "check https_proxy"
    return Failure(what, Blame.NETWORK, next_step=next_step, transient=transient)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
