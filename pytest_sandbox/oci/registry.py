"""Pulling from registries: references become digests, manifests and verified bytes.

After the OCI distribution spec. Everything that a server sends is bounded, and held to the digest
and the size that name it before anything reads it.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from pytest_sandbox.errors import Blame, InvalidImage, RegistryError
from pytest_sandbox.oci.bounds import DEFAULT_BOUNDS, Bounds
from pytest_sandbox.oci.choice import check_config, find_manifest
from pytest_sandbox.oci.credentials import Credentials
from pytest_sandbox.oci.descriptors import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from pytest_sandbox.oci.digests import check_bytes, check_digest
from pytest_sandbox.oci.endpoint import Endpoint, check_mirror
from pytest_sandbox.oci.exchange import refusal
from pytest_sandbox.oci.manifests import Index, Manifest, parse_manifest
from pytest_sandbox.oci.platforms import Platform, host_platform
from pytest_sandbox.oci.reference import normal_registry
from pytest_sandbox.oci.retries import RetryRule, attempts
from pytest_sandbox.oci.transfer import Memory, Sink, Transfer
from pytest_sandbox.transport.addresses import Failure
from pytest_sandbox.transport.connections import open_client
from pytest_sandbox.transport.requests import trust

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from pytest_sandbox.oci.exchange import Answer
    from pytest_sandbox.oci.progress import Bar
    from pytest_sandbox.oci.reference import Reference
    from pytest_sandbox.transport.connections import Client

T = TypeVar("T")
ACCEPTED: Final = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
"""The media types that a manifest may have, as an Accept header."""
_MIRROR_TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means for one platform: all but the layers, verified.

    `digest` is that of the tag (an index's, if there is one), `config` the config's bytes,
    `indexes` the indexes on the way to the manifest, outermost first; raw bytes are in `raw` of
    each.
    """

    reference: Reference
    digest: str
    manifest: Manifest
    config: bytes
    platform: Platform
    indexes: tuple[Index, ...] = ()


class Registry:
    """Pulls from any registry: finds its mirrors, credentials and scheme. Safe for threads.

    `insecure` are the registries (`host[:port]`) that may be asked by plain http; loopback always
    may. `mirrors` gives registries the base addresses that are asked before them, `realms` the
    origins of token servers that may see their credentials. `timeout` is how long a server may be
    silent, in seconds; `rule` says when to try again. Leaving it as a context closes connections.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] = os.environ,
        credentials: Credentials | None = None,
        insecure: Collection[str] = (),
        mirrors: Mapping[str, Sequence[str]] | None = None,
        realms: Mapping[str, Sequence[str]] | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        timeout: float = 60.0,
        rule: RetryRule | None = None,
        connections: int = 8,
    ) -> None:
        self.bounds = bounds
        self.rule = rule or RetryRule()
        self._environ = environ
        self._credentials = credentials or Credentials(environ)
        self._insecure = frozenset(name.lower() for name in insecure)
        self._mirrors = {
            normal_registry(name): tuple(check_mirror(address) for address in addresses)
            for name, addresses in (mirrors or {}).items()
        }
        self._realms = {normal_registry(name): tuple(urls) for name, urls in (realms or {}).items()}
        self._timeout = timeout
        self._connections = connections
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._endpoints: dict[str, Endpoint] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        with self._lock:
            client, self._client = self._client, None
            self._endpoints.clear()
        if client is not None:
            client.__exit__()

    def resolve(self, reference: Reference, platform: Platform | None = None) -> Resolved:
        """The image that a reference means for a platform (None: this machine's).

        Raises RegistryError, InvalidImage for content that breaks the rules, ImageUnavailable where
        it is not made for the platform.
        """
        what, wanted = reference.familiar, platform or host_platform()
        top = self.manifest(reference)
        manifest, indexes = find_manifest(
            top,
            wanted,
            lambda entry: self.document(reference, entry),
            what=what,
            bounds=self.bounds,
        )
        manifest.check_image(what=what, bounds=self.bounds)
        config = self.read_blob(reference, manifest.config, self.bounds.config)
        check_config(config, manifest, wanted, what=what, bounds=self.bounds)
        return Resolved(reference, top.digest, manifest, config, wanted, indexes)

    def manifest(self, reference: Reference) -> Manifest | Index:
        """The manifest or index that a reference names. Raises RegistryError or InvalidImage."""

        def work(endpoint: Endpoint, rule: RetryRule) -> Manifest | Index:
            return self._get_manifest(endpoint, rule, reference)

        return self._from_any(reference, work)

    def document(self, reference: Reference, entry: Descriptor) -> Manifest | Index:
        """A manifest or index of the reference's repository by its descriptor, held to it.

        Raises RegistryError or InvalidImage.
        """
        pinned = reference.with_digest(entry.digest)

        def work(endpoint: Endpoint, rule: RetryRule) -> Manifest | Index:
            return self._get_manifest(endpoint, rule, pinned, entry)

        return self._from_any(pinned, work)

    def current_digest(self, reference: Reference) -> str:
        """The digest that a reference has now, by a HEAD where the registry tells it that way.

        Raises RegistryError or InvalidImage.
        """

        def work(endpoint: Endpoint, rule: RetryRule) -> str:
            def head() -> str:
                with self._ask_manifest("HEAD", endpoint, reference) as answer:
                    if answer.status == 405:
                        return ""
                    return answer.header("docker-content-digest")

            digest = attempts(rule, head)
            if digest.startswith("sha256:"):
                return check_digest(digest, where=f"{endpoint} (HEAD)")
            return self._get_manifest(endpoint, rule, reference).digest

        return self._from_any(reference, work)

    def blob(
        self, reference: Reference, descriptor: Descriptor, sink: Sink, bar: Bar | None = None
    ) -> None:
        """Stream a blob of the reference's repository into a sink: size and digest are verified
        when this returns, not before. Retries and resumes by itself.

        Raises RegistryError where it cannot be had, InvalidImage where it is something else, and
        what the sink raises.
        """
        transfer = Transfer(descriptor, sink, bar)

        def work(endpoint: Endpoint, rule: RetryRule) -> None:
            transfer.fetch(endpoint, reference.repository, rule)

        self._from_any(reference, work)

    def read_blob(self, reference: Reference, descriptor: Descriptor, limit: int) -> bytes:
        """A whole blob of at most `limit` bytes, verified. Raises as `blob` does."""
        if descriptor.size > limit:
            what = (
                f"{reference.familiar}: {descriptor.digest} has {descriptor.size} bytes; at most"
                f" {limit} are taken"
            )
            raise InvalidImage(what)
        sink = Memory()
        self.blob(reference, descriptor, sink)
        return sink.data()

    def endpoint(self, registry: str) -> Endpoint:
        """The server of a registry (`host[:port]`), or a mirror by its base address."""
        with self._lock:
            if self._client is None:
                try:
                    self._client = open_client(
                        self._environ,
                        cache(partial(trust, self._environ, self.rule.say)),
                        self._timeout,
                        plain=self._insecure,
                        connections=self._connections,
                    )
                except Failure as failure:
                    raise registry_error(registry, failure) from failure
            if registry not in self._endpoints:
                self._endpoints[registry] = Endpoint(
                    self._client,
                    registry,
                    self._credentials.find,
                    realms=self._realms,
                    bounds=self.bounds,
                    stall=self._timeout,
                )
            return self._endpoints[registry]

    def _get_manifest(
        self,
        endpoint: Endpoint,
        rule: RetryRule,
        reference: Reference,
        entry: Descriptor | None = None,
    ) -> Manifest | Index:
        """A manifest from one endpoint: size, digest, then its form. Raises Failure too."""
        limit = self.bounds.manifest if entry is None else min(entry.size, self.bounds.manifest)

        def get() -> tuple[bytes, str]:
            with self._ask_manifest("GET", endpoint, reference) as answer:
                data = answer.read(limit, "the manifest")
                claimed = answer.header("docker-content-digest")
                if claimed.startswith("sha256:"):
                    check_bytes(data, claimed, source=f"{endpoint} (Docker-Content-Digest)")
                return data, answer.header("content-type")

        data, content_type = attempts(rule, get)
        if reference.digest:
            size = None if entry is None else entry.size
            check_bytes(data, reference.digest, size, source=str(endpoint))
        what = f"the manifest of {reference.familiar}"
        found = parse_manifest(data, content_type, self.bounds, what=what)
        if entry is not None and found.media_type != entry.media_type:
            problem = f"{what} is {found.media_type}, its index says {entry.media_type}"
            raise InvalidImage(problem)
        return found

    @contextmanager
    def _ask_manifest(
        self, method: str, endpoint: Endpoint, reference: Reference
    ) -> Iterator[Answer]:
        """An answer 200 (or 405 to HEAD). Raises Failure."""
        url = endpoint.url(reference.repository, f"manifests/{reference.locator}")
        with endpoint.ask(
            method, url, reference.repository, headers={"Accept": ACCEPTED}
        ) as answer:
            if answer.status == 404:
                what = f"{endpoint} has no {reference.repository}:{reference.tag or 'latest'}"
                if reference.digest:
                    what = f"{endpoint} has no {reference.repository}@{reference.digest}"
                help = "check the name and the tag"
                raise Failure(what, Blame.UPSTREAM, next_step=help, status=404)
            if answer.status != 200 and not (method == "HEAD" and answer.status == 405):
                secrets = endpoint.authority(reference.repository).secrets()
                raise refusal(answer, secrets)
            yield answer

    def _from_any(self, reference: Reference, work: Callable[[Endpoint, RetryRule], T]) -> T:
        """The result of `work` at the first endpoint where it succeeds: mirrors, then the registry.

        A mirror gets few tries, and none any more once it does not answer.
        """
        others = [self.endpoint(address) for address in self._mirrors.get(reference.registry, ())]
        failed: list[str] = []
        for mirror in others:
            if mirror.is_down:
                continue
            try:
                return work(mirror, self.rule.with_tries(_MIRROR_TRIES))
            except Failure as failure:
                mirror.is_down = failure.transient
                failed.append(failure.what)
            except InvalidImage as error:
                failed.append(error.what)
            self.rule.say(f"{failed[-1]}; the next server is asked")
        try:
            return work(self.endpoint(reference.registry), self.rule)
        except Failure as failure:
            if "WRONG_VERSION_NUMBER" in failure.what:  # OpenSSL's word for an answer without TLS
                plain = f"--sandbox-registry-insecure {reference.registry}"
                failure.next_step = f"if it is to be asked by plain http: {plain}"
            raise registry_error(reference.familiar, failure, failed) from failure


def registry_error(what: str, failure: Failure, others: Sequence[str] = ()) -> RegistryError:
    """The error for a failure; `what` names the image, `others` is what its mirrors did."""
    also = f" (and before: {'; '.join(others)})" if others else ""
    return RegistryError(
        f"{what}: {failure.what}{also}",
        blame=failure.blame,
        next_step=failure.next_step,
        status=failure.status,
    )
