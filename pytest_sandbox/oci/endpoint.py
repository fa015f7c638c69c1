"""One server that speaks the distribution API: its address, its authentication, its paths."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from pytest_sandbox.errors import Blame, UsageError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.exchange import exchange
from pytest_sandbox.oci.reference import api_host, normal_registry
from pytest_sandbox.oci.tokens import KNOWN_REALMS, Authority
from pytest_sandbox.transport.addresses import (
    Failure,
    check_url,
    host_of,
    is_loopback,
    may_be_plain,
    origin_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_sandbox.oci.credentials import Credential
    from pytest_sandbox.oci.exchange import Answer, Body
    from pytest_sandbox.transport.connections import Client

_HTTPS_ASKED: Final = 400  # what servers of https answer to plain http


class Endpoint:
    """One server of images: a registry, or a mirror of one. Safe for threads.

    `address` is a registry's host with perhaps a port (then its scheme is https; on loopback and
    for hosts that may be asked without TLS it is found out), or a mirror's base address, whose path
    is put in front of every repository. `credential` finds the credential for a repository.
    """

    def __init__(
        self,
        client: Client,
        address: str,
        credential: Callable[[str, str], Credential | None],
        *,
        realms: Mapping[str, tuple[str, ...]] | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        stall: float = 60.0,
    ) -> None:
        self._client = client
        self._credential = credential
        self._realms = realms or {}
        self._bounds = bounds
        self._stall = stall
        self._lock = threading.Lock()
        self._base = ""
        self._prefix = ""
        self._authorities: dict[str, Authority] = {}
        if "://" in address:
            parts = urlsplit(address)
            self.registry = normal_registry(parts.netloc)
            self._prefix = parts.path.strip("/")
            self._base = f"{parts.scheme}://{api_host(self.registry)}"
        else:
            self.registry = normal_registry(address)
        self.is_down = False
        """Set by who has found that it does not answer."""

    def __str__(self) -> str:
        return f"{self.registry}/{self._prefix}" if self._prefix else self.registry

    def base(self) -> str:
        """Scheme and host of the API. Raises Failure where it cannot be found out."""
        with self._lock:
            if not self._base:
                self._base = f"{self._scheme()}://{api_host(self.registry)}"
            return self._base

    def url(self, repository: str, path: str) -> str:
        """The address of something in a repository, such as `manifests/latest`."""
        name = f"{self._prefix}/{repository}" if self._prefix else repository
        return f"{self.base()}/v2/{quote(name)}/{path}"

    def scope(self, repository: str, actions: str = "pull") -> str:
        """The scope of a token for a repository."""
        name = f"{self._prefix}/{repository}" if self._prefix else repository
        return f"repository:{name}:{actions}"

    @contextmanager
    def ask(
        self,
        method: str,
        url: str,
        repository: str,
        *,
        scopes: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        come_from: str = "",
    ) -> Iterator[Answer]:
        """One request with authentication (`scopes`, or pull); any status but 401. Raises Failure.

        A 401 is answered once: with a new token, or with the credentials. Authentication is for
        this endpoint's own origin: an `url` elsewhere gets none.
        """
        authority = self.authority(repository)
        scopes = scopes or (self.scope(repository),)
        sent = authority.header(scopes)
        for last in (False, True):
            with exchange(
                self._client,
                method,
                url,
                headers or {},
                authorization=sent,
                origin=self._origin(),
                body=body,
                stall=self._stall,
                come_from=come_from,
            ) as answer:
                if answer.status == 401 and not answer.moved:
                    if last:
                        raise authority.denied(answer)
                    sent = authority.answer(answer, scopes, sent)
                    answer.drop()
                    continue
                if answer.status == 403 and not answer.moved:
                    raise authority.denied(answer)
                yield answer
                return

    def authority(self, repository: str) -> Authority:
        """What opens a repository."""
        origin = self._origin()
        with self._lock:
            if repository not in self._authorities:
                realms = (
                    *KNOWN_REALMS.get(self.registry, ()),
                    *self._realms.get(self.registry, ()),
                )
                self._authorities[repository] = Authority(
                    self._client,
                    self.registry,
                    origin,
                    lambda: self._credential(self.registry, repository),
                    realms=realms,
                    bounds=self._bounds,
                    stall=self._stall,
                )
            return self._authorities[repository]

    def _origin(self) -> str:
        return origin_of(check_url(self.base(), blame=Blame.RECIPE, plain=self._client.plain))

    def _scheme(self) -> str:
        """https; http where it may be asked without TLS and does not turn out to want it."""
        plain = f"http://{api_host(self.registry)}"
        parsed = check_url(f"https://{api_host(self.registry)}", blame=Blame.RECIPE)
        local = is_loopback(host_of(parsed))
        if not local and not may_be_plain(parsed._replace(scheme="http"), self._client.plain):
            return "https"
        from urllib3.exceptions import ProtocolError

        try:
            # without authentication, and its answer is not believed in anything else
            return self._probe(plain)
        except Failure as failure:
            if not isinstance(failure.__cause__, ProtocolError):
                raise
            with suppress(Failure):  # a server of TLS may just as well cut a plain request
                self._probe(f"https{plain[4:]}")
                return "https"
            raise

    def _probe(self, base: str) -> str:
        """Which scheme a server wants that is asked at `base`."""
        with exchange(
            self._client, "GET", f"{base}/v2/", {}, stall=self._stall, redirects=0
        ) as answer:
            refused = answer.status == _HTTPS_ASKED or 300 <= answer.status < 400
            answer.drop()
            return "https" if refused else "http"


def check_mirror(address: str) -> str:
    """A mirror's base address as it is. Raises UsageError where it is none."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.username is None
    except ValueError:
        pass
    else:
        if good and not (parts.query or parts.fragment):
            return address
    what = f"{address[:120]!r} is no base address of a mirror"
    raise UsageError(what, next_step="write https://HOST[:PORT][/PATH], without user and password")
