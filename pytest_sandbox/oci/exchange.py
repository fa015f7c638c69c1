"""One request with its redirects: credentials stay with the exact origin that they are for."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, printable
from pytest_sandbox.oci.bounds import raised
from pytest_sandbox.transport.addresses import Failure, check_url, origin_of, shown
from pytest_sandbox.transport.requests import REDIRECTS, blocks, failures, join, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from urllib3 import BaseHTTPResponse

    from pytest_sandbox.transport.connections import Client

    Body = Callable[[], bytes | Iterable[bytes]]

SLOWEST: Final = 1024
"""A body is stalled if fewer bytes than this come in the time that a server may be silent."""
_ERROR_BYTES: Final = 16 << 10
_SAFE: Final = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer; `url` is the address behind the redirects that gave it, `moved` whether
    it lies at another origin than the one that was asked.
    """

    url: str
    moved: bool
    response: BaseHTTPResponse
    stall: float

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, found in any case."""
        return self.response.headers

    def header(self, name: str) -> str:
        """One header, empty where it is missing."""
        return str(self.response.headers.get(name, ""))

    def challenges(self) -> list[str]:
        """Every WWW-Authenticate header."""
        return list(self.response.headers.getlist("www-authenticate"))

    def blocks(self) -> Iterator[bytes]:
        """The body as it comes. Raises Failure where it is cut or stalled; what the reader of the
        blocks raises is not touched.
        """
        began, count = time.monotonic(), 0
        source = blocks(self.response)
        while True:
            with failures(self.url):
                block = next(source, b"")
            if not block:
                return
            count += len(block)
            now = time.monotonic()
            if now - began >= self.stall:
                if count < SLOWEST:
                    what = f"{shown(self.url)} sent {count} bytes in {now - began:.0f} s: stalled"
                    help = "try again later"
                    raise Failure(what, Blame.NETWORK, next_step=help, transient=True)
                began, count = now, 0
            yield block

    def read(self, limit: int, what: str) -> bytes:
        """The whole body. Raises Failure where it is larger than `limit` bytes; `what` names it."""
        length = self.header("content-length")
        parts: list[bytes] = []
        size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0
        if size <= limit:
            size = 0
            for block in self.blocks():
                size += len(block)
                if size > limit:
                    break
                parts.append(block)
        if size > limit:
            problem = f"{shown(self.url)}: {what} is larger than {limit} bytes"
            help = raised("manifest") if what == "the manifest" else ""
            raise Failure(problem, Blame.UPSTREAM, next_step=help)
        return b"".join(parts)

    def drop(self) -> None:
        """Read what is left of a short body, so that the connection can be used again."""
        size = 0
        for block in self.blocks():
            size += len(block)
            if size > _ERROR_BYTES:
                return


@contextmanager
def exchange(
    client: Client,
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    authorization: str = "",
    origin: str = "",
    body: Body | None = None,
    stall: float = 60.0,
    come_from: str = "",
    redirects: int = REDIRECTS,
) -> Iterator[Answer]:
    """One request, redirects followed one by one, each under the rules for addresses; any status.

    `authorization` is sent to `origin` alone, and no more once a redirect has left it. A request
    that is neither GET nor HEAD is repeated only for 307 and 308, its `body` made anew. With no
    `redirects` the answer that is one comes back. Raises Failure.
    """
    left = False
    for _ in range(redirects + 1):
        parsed = check_url(url, blame=Blame.UPSTREAM, come_from=come_from, plain=client.plain)
        left = left or (bool(origin) and origin_of(parsed) != origin)
        sent = dict(headers)
        if authorization and not left:
            sent["Authorization"] = authorization
        with failures(url):
            content = None if body is None else body()
            response = client.ask(parsed, sent, method=method, body=content)
        with closing(response):
            statuses = (301, 302, 303, 307, 308) if method in _SAFE else (307, 308)
            location = response.headers.get("location", "")
            if redirects and response.status in statuses and location:
                come_from, url = url, join(url, location)
                continue
            yield Answer(url, left, response, stall)
            return
    what = f"{shown(url)} is the end of more than {redirects} redirects"
    raise Failure(what, Blame.UPSTREAM)


def refusal(answer: Answer, secrets: Iterable[str] = ()) -> Failure:
    """The failure for an answer whose status is none that was asked for, with what the server says;
    `secrets` are masked in it.
    """
    status = answer.status
    what = f"{shown(answer.url)} answers {status} {answer.response.reason or ''}".rstrip()
    if said := _message(answer):
        for secret in secrets:
            said = said.replace(secret, "***")
        what += f" ({said})"
    if status in (408, 425, 429) or status >= 500:
        limited = "log in, set a mirror, or try again later"
        return Failure(
            what,
            Blame.NETWORK,
            next_step=limited if status == 429 else "try again later",
            transient=True,
            wait=retry_after(answer.header("retry-after")),
            status=status,
        )
    return Failure(what, Blame.UPSTREAM, status=status)


def _message(answer: Answer) -> str:
    """Code and message of a registry's error (distribution-spec, error codes), for people."""
    try:
        value = json.loads(answer.read(_ERROR_BYTES, "the error"))
        first = value["errors"][0]
        texts = [str(first.get(name) or "") for name in ("code", "message")]
    except (Failure, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return printable(": ".join(" ".join(text.split()) for text in texts if text))[:300]
