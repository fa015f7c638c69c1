"""Authentication to one registry: Basic, and Bearer with a cache of tokens by scope.

After distribution's token and OAuth 2 specifications. A challenge names the server that gives
tokens (its realm); who serves the registry writes it, so it is not believed: credentials go to the
registry's own origin and to realms that are listed.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from pytest_sandbox.errors import Blame, InvalidImage
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.challenges import Challenge, parse_challenges
from pytest_sandbox.oci.documents import read_document
from pytest_sandbox.oci.exchange import exchange, refusal
from pytest_sandbox.transport.addresses import Failure, check_url, is_loopback, origin_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pytest_sandbox.oci.credentials import Credential
    from pytest_sandbox.oci.exchange import Answer
    from pytest_sandbox.transport.connections import Client

KNOWN_REALMS: Final = {"docker.io": ("https://auth.docker.io",)}
"""Registries whose tokens come from another server, and that server's origin."""
CLIENT_ID: Final = "pytest-sandbox"
_LIFETIME: Final = 60.0  # seconds, where a token does not say
_EARLY: Final = 0.1  # the part of its lifetime at which a token is no longer used
_TOKEN: Final = re.compile(r"[!-~]{1,65536}")
_SCOPE: Final = re.compile(r"[!-~ ]{1,1024}")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    until: float  # by the monotonic clock


class Authority:
    """What opens one registry at `origin`: finds the credential once it is asked for, gets tokens
    and keeps them. Safe for threads.

    `realms` are the origins, beside its own, that may see its credentials.
    """

    def __init__(
        self,
        client: Client,
        registry: str,
        origin: str,
        credential: Callable[[], Credential | None],
        *,
        realms: Collection[str] = (),
        bounds: Bounds = DEFAULT_BOUNDS,
        stall: float = 60.0,
    ) -> None:
        self._client = client
        self._registry = registry
        self._origin = origin
        self._find = credential
        self._realms = [realm.rstrip("/") for realm in realms]
        self._bounds = bounds
        self._stall = stall
        # RLock: what goes wrong while a token is fetched asks for the secrets to mask
        self._lock = threading.RLock()
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._basic = ""
        self._withheld = ""
        self._secrets: set[str] = set()

    def header(self, scopes: tuple[str, ...]) -> str:
        """The Authorization header for some scopes as far as it is known; empty without one."""
        with self._lock:
            return self._known(scopes)

    def secrets(self) -> list[str]:
        """The texts that no error may show."""
        with self._lock:
            return sorted(self._secrets, key=len, reverse=True)

    def answer(self, refused: Answer, scopes: tuple[str, ...], sent: str) -> str:
        """The header to try after a 401 that `sent` got, through the challenge's own way.

        Raises Failure where there is no other way in.
        """
        challenges = parse_challenges(refused.challenges())
        with self._lock:
            known = self._known(scopes)
            if known and known != sent:
                return known  # another thread was here before
            self._tokens.pop(scopes, None)
            for challenge in challenges:
                if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                    header = self._bearer(challenge, scopes)
                    if header != sent:
                        return header
                elif challenge.scheme == "basic":
                    header = self._basic_header()
                    if header and header != sent:
                        self._basic = header
                        return header
        raise self.denied(refused)

    def denied(self, refused: Answer) -> Failure:
        """The failure for an answer 401 or 403 that no credential changes."""
        failure = refusal(refused, self.secrets())
        credential = self._credential()
        if credential is None:
            known = f"no credentials for {self._registry} are known"
            help = f"check the name, or log in: docker login {self._registry}"
        elif self._withheld:
            known = f"the credentials from {credential.source} were not sent to {self._withheld}"
            realm = f"--sandbox-registry-realm {self._registry}={self._withheld}"
            help = f"list it as a realm of {self._registry} if you trust it: {realm}"
        else:
            known = f"with the credentials from {credential.source}"
            help = f"check the name and your rights there, or log in: docker login {self._registry}"
        what = f"{failure.what}; {known}"
        return Failure(what, Blame.UPSTREAM, next_step=help, status=failure.status)

    def _known(self, scopes: tuple[str, ...]) -> str:
        if self._basic:
            return self._basic
        token = self._tokens.get(scopes)
        return f"Bearer {token.text}" if token and time.monotonic() < token.until else ""

    def _credential(self) -> Credential | None:
        found = self._find()
        if found is not None:
            self._secrets.update(found.secrets())
        return found

    def _basic_header(self) -> str:
        found = self._credential()
        return found.basic if found else ""

    def _bearer(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        """A new token for some scopes, through the challenge's realm."""
        credential = self._credential()
        if credential is not None and credential.registry_token:
            return f"Bearer {self._checked(credential.registry_token)}"
        asked = list(scopes)
        own = challenge.parameters.get("scope", "")
        if own and own not in asked and _SCOPE.fullmatch(own):
            asked.append(own)
        service = challenge.parameters.get("service", "")
        realm = challenge.parameters["realm"]
        url = check_url(
            realm, blame=Blame.UPSTREAM, come_from=self._origin, plain=self._client.plain
        )
        origin = origin_of(url)
        trusted = self._may_see(origin)
        self._withheld = "" if trusted or credential is None else origin
        if not trusted:
            credential = None
        if credential is not None and credential.identity_token:
            token = self._refresh(realm, origin, service, asked, credential.identity_token)
        else:
            query: list[tuple[str, str]] = [("service", service)] if service else []
            query += [("scope", scope) for scope in asked]
            if credential is not None and credential.username:
                query.append(("account", credential.username))
            address = realm + ("&" if "?" in realm else "?") + urlencode(query)
            basic = credential.basic if credential is not None else ""
            with exchange(
                self._client,
                "GET",
                address,
                {"Accept": "application/json"},
                authorization=basic,
                origin=origin,
                stall=self._stall,
                come_from=self._origin,
            ) as answer:
                token = self._read(answer)
        self._tokens[scopes] = token
        return f"Bearer {token.text}"

    def _may_see(self, origin: str) -> bool:
        """Whether a realm may see the credentials: the registry's own origin by https or on
        loopback, or one that is listed.
        """
        if origin in self._realms or origin in map(_with_port, self._realms):
            return True
        host = re.sub(r"^https?://|:[0-9]+$", "", origin).strip("[]")
        return origin == self._origin and (origin.startswith("https:") or is_loopback(host))

    def _refresh(
        self, realm: str, origin: str, service: str, scopes: Iterable[str], secret: str
    ) -> _Token:
        """A token for an identity token, the OAuth 2 way."""
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": CLIENT_ID,
            "scope": " ".join(scopes),
            "refresh_token": secret,
        }
        with exchange(
            self._client,
            "POST",
            realm,
            {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
            # the secret lies in the body: a redirect to another origin is not followed with it
            body=lambda: urlencode(form).encode(),
            stall=self._stall,
            origin=origin,
            redirects=0,
            come_from=self._origin,
        ) as answer:
            return self._read(answer)

    def _read(self, answer: Answer) -> _Token:
        if answer.status in (401, 403):
            raise self.denied(answer)
        if answer.status != 200:
            raise refusal(answer, self._secrets)
        data = answer.read(self._bounds.token, "the token")
        try:
            document = read_document(data, what="the token", limit=self._bounds.token)
        except InvalidImage as error:
            what = f"{shown(answer.url)}: {error.what}"
            raise Failure(what, Blame.UPSTREAM) from None
        text = document.get("token") or document.get("access_token")
        lifetime = document.get("expires_in")
        if not isinstance(lifetime, (int, float)) or isinstance(lifetime, bool) or lifetime <= 0:
            lifetime = _LIFETIME
        lifetime = float(min(lifetime, 86400))
        token = self._checked(text, answer.url)
        return _Token(token, time.monotonic() + lifetime * (1 - _EARLY))

    def _checked(self, text: object, url: str = "") -> str:
        if isinstance(text, str) and _TOKEN.fullmatch(text):
            self._secrets.add(text)
            return text
        what = f"{shown(url) if url else self._registry} gives no token that can be sent"
        raise Failure(what, Blame.UPSTREAM)


def _with_port(origin: str) -> str:
    if re.search(r":[0-9]+$", origin):
        return origin
    return f"{origin}:{443 if origin.startswith('https:') else 80}"
