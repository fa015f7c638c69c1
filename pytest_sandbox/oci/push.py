"""Pushing to registries: blobs (mounted, in one piece or in chunks), manifests, indexes.

After the OCI distribution spec, "Push". Where an upload goes on is said by the server (Location):
it follows the rules of redirects, and credentials go to the registry's own origin alone.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import urlencode

from pytest_sandbox.errors import Blame, InvalidImage
from pytest_sandbox.oci.bounds import MIB
from pytest_sandbox.oci.exchange import refusal
from pytest_sandbox.oci.manifests import Index
from pytest_sandbox.oci.progress import Silent
from pytest_sandbox.oci.registry import Registry, registry_error
from pytest_sandbox.oci.retries import Tries, attempts
from pytest_sandbox.transport.addresses import Failure, shown
from pytest_sandbox.transport.requests import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_sandbox.oci.descriptors import Descriptor
    from pytest_sandbox.oci.endpoint import Endpoint
    from pytest_sandbox.oci.exchange import Answer
    from pytest_sandbox.oci.manifests import Manifest
    from pytest_sandbox.oci.progress import Bar, Display
    from pytest_sandbox.oci.reference import Reference

    Source = Callable[[Descriptor], IO[bytes]]

CHUNK: Final = 64 * MIB
"""Blobs up to this size go in one request, larger ones in chunks of it."""
PARALLEL: Final = 4
_BLOCK: Final = 1 << 18
_NO_CHUNKS: Final = (400, 404, 405, 411, 413, 501)  # from servers that do not take them
_BYTES: Final = {"Content-Type": "application/octet-stream"}


def push_image(
    registry: Registry,
    reference: Reference,
    top: Manifest | Index,
    source: Source,
    *,
    child: Callable[[Descriptor], Manifest | Index] | None = None,
    mount_from: Sequence[str] = (),
    display: Display | None = None,
    chunk: int = CHUNK,
) -> str:
    """Push an image, or an index with all that it names, and tag it; its digest.

    `source` opens a blob at its start, `child` gives an index's documents. Blobs that the registry
    has are not sent; `mount_from` are repositories of the same registry that may have them. Blobs
    go first, four at a time, then manifests, the tag last. Raises RegistryError.
    """
    documents = list(_documents(top, child))
    blobs = {
        blob.digest: blob
        for document in documents
        if not isinstance(document, Index)
        for blob in (document.config, *document.layers)
    }
    show = display or Silent()

    def send(blob: Descriptor) -> None:
        bar = show.bar(blob.digest[7:19], blob.size)
        how = push_blob(
            registry, reference, blob, source, mount_from=mount_from, bar=bar, chunk=chunk
        )
        bar.finish("" if how == "sent" else how)

    _in_parallel(send, list(blobs.values()))
    for document in documents[:-1]:
        push_manifest(registry, reference, document)
    push_manifest(registry, reference, top, tag=reference.tag)
    return top.digest


def push_blob(
    registry: Registry,
    reference: Reference,
    descriptor: Descriptor,
    source: Source,
    *,
    mount_from: Sequence[str] = (),
    bar: Bar | None = None,
    chunk: int = CHUNK,
) -> str:
    """Push a blob into the reference's repository: `already there`, `mounted` or `sent`.

    Raises RegistryError, and InvalidImage where the source is not as long as it should be.
    """
    upload = _Upload(
        registry, reference, descriptor, source=source, bar=bar or Silent(), chunk=chunk
    )
    try:
        return upload.run([name for name in mount_from if name != reference.repository])
    except Failure as failure:
        raise registry_error(reference.familiar, failure) from failure


def push_manifest(
    registry: Registry, reference: Reference, document: Manifest | Index, *, tag: str = ""
) -> None:
    """Push a manifest or an index by its digest, or under a tag. Raises RegistryError."""
    endpoint = registry.endpoint(reference.registry)
    url = endpoint.url(reference.repository, f"manifests/{tag or document.digest}")

    def put() -> None:
        with endpoint.ask(
            "PUT",
            url,
            reference.repository,
            scopes=(endpoint.scope(reference.repository, "pull,push"),),
            headers={"Content-Type": document.media_type},
            body=lambda: document.raw,
        ) as answer:
            if answer.status not in (200, 201, 202):
                raise _refused(endpoint, reference, answer)
            stored = answer.header("docker-content-digest")
            answer.drop()
            if stored.startswith("sha256:") and stored != document.digest:
                what = f"{shown(url)} stored {stored[:80]} instead of {document.digest}"
                raise Failure(what, Blame.UPSTREAM)

    try:
        attempts(registry.rule, put)
    except Failure as failure:
        raise registry_error(reference.familiar, failure) from failure


class _Upload:
    """One blob on its way to the registry."""

    def __init__(
        self,
        registry: Registry,
        reference: Reference,
        descriptor: Descriptor,
        *,
        source: Source,
        bar: Bar,
        chunk: int,
    ) -> None:
        self._endpoint = registry.endpoint(reference.registry)
        self._rule = registry.rule
        self._reference = reference
        self._descriptor = descriptor
        self._source = source
        self._bar = bar
        self._chunk = chunk
        self._scopes: tuple[str, ...] = ()
        self._location = ""
        self._come_from = ""

    def run(self, mount_from: list[str]) -> str:
        """Send it, if it is not there and cannot be mounted. Raises Failure."""
        repository = self._reference.repository
        own = self._endpoint.scope(repository, "pull,push")
        self._scopes = (own,)
        if attempts(self._rule, self._is_there):
            return "already there"
        for name in mount_from:
            self._scopes = (own, self._endpoint.scope(name))
            try:
                if attempts(self._rule, partial(self._mount, name)):
                    return "mounted"
            except Failure as failure:
                if failure.transient:
                    raise
                # no right to read there: the blob is sent like any other
        self._scopes = (own,)
        tries = Tries(self._rule)
        in_chunks, offset = self._descriptor.size > self._chunk, 0
        while True:
            try:
                if not self._location:
                    self._start()
                    offset = 0
                    self._bar.restart()
                while in_chunks and offset < self._descriptor.size:
                    offset = self._send_chunk(offset)
                self._send_rest(offset)
            except Failure as failure:
                if in_chunks and offset == 0 and failure.status in _NO_CHUNKS:
                    in_chunks, self._location = False, ""
                    continue
                tries.wait(failure)
                offset = self._kept() if in_chunks else 0
                if not in_chunks or offset < 0:
                    self._location = ""
            else:
                return "sent"

    def _is_there(self) -> bool:
        url = self._url(f"blobs/{self._descriptor.digest}")
        with self._ask("HEAD", url) as answer:
            if answer.status not in (200, 404):
                raise _refused(self._endpoint, self._reference, answer)
            return answer.status == 200

    def _mount(self, name: str) -> bool:
        """Whether the blob is now there, from another repository; else an upload may be open."""
        query = urlencode({"mount": self._descriptor.digest, "from": name})
        with self._ask("POST", self._url(f"blobs/uploads/?{query}")) as answer:
            if answer.status == 202:
                self._follow(answer)
            elif answer.status >= 500 or answer.status == 429:
                raise _refused(self._endpoint, self._reference, answer)
            answer.drop()
            return answer.status == 201

    def _start(self) -> None:
        with self._ask("POST", self._url("blobs/uploads/")) as answer:
            if answer.status != 202:
                raise _refused(self._endpoint, self._reference, answer)
            self._follow(answer)
            least = answer.header("oci-chunk-min-length")
            if re.fullmatch(r"[0-9]{1,12}", least):
                self._chunk = max(self._chunk, int(least))
            answer.drop()

    def _send_chunk(self, offset: int) -> int:
        """Send one chunk; how many bytes are there then."""
        end = min(offset + self._chunk, self._descriptor.size)
        headers = {"Content-Range": f"{offset}-{end - 1}", "Content-Length": str(end - offset)}
        with self._ask("PATCH", self._location, headers, lambda: self._read(offset, end)) as answer:
            if answer.status not in (202, 204):
                raise _refused(self._endpoint, self._reference, answer, again=416)
            self._follow(answer)
            answer.drop()
        return end

    def _send_rest(self, offset: int) -> None:
        """End the upload, with all bytes from `offset` on."""
        size = self._descriptor.size
        mark = "&" if "?" in self._location else "?"
        url = f"{self._location}{mark}{urlencode({'digest': self._descriptor.digest})}"
        headers = {"Content-Length": str(size - offset)}
        with self._ask("PUT", url, headers, lambda: self._read(offset, size)) as answer:
            if answer.status not in (201, 204):
                raise _refused(self._endpoint, self._reference, answer, again=416)
            answer.drop()

    def _kept(self) -> int:
        """How many bytes of an upload the server has; -1 where it does not know."""
        try:
            with self._ask("GET", self._location) as answer:
                span = re.match(r"(?:bytes=)?0-([0-9]{1,18})$", answer.header("range"))
                if answer.status != 204 or not span:
                    return -1
                self._follow(answer)
                kept = int(span[1]) + 1
        except Failure:
            return -1
        if kept > self._descriptor.size:
            return -1
        self._bar.restart()
        self._bar.advance(kept)
        return kept if kept > 1 else 0  # `0-0` stands for none, too

    def _follow(self, answer: Answer) -> None:
        location = answer.header("location")
        if not location:
            what = f"{shown(answer.url)} does not say where the upload goes on"
            raise Failure(what, Blame.UPSTREAM)
        self._come_from, self._location = answer.url, join(answer.url, location)

    def _read(self, offset: int, end: int) -> Iterator[bytes]:
        with self._source(self._descriptor) as file:
            file.seek(offset)
            while offset < end:
                block = file.read(min(_BLOCK, end - offset))
                if not block:
                    what = f"{self._descriptor.digest} ends after {offset} bytes here"
                    help = "verify the images that are stored"
                    raise InvalidImage(what, blame=Blame.HOST, next_step=help)
                yield block
                offset += len(block)
                self._bar.advance(len(block))

    def _url(self, path: str) -> str:
        self._come_from = ""
        return self._endpoint.url(self._reference.repository, path)

    @contextmanager
    def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Iterator[bytes]] | None = None,
    ) -> Iterator[Answer]:
        sent = {**_BYTES, **(headers or {})} if body else {}
        if method == "POST":
            sent["Content-Length"] = "0"
        with self._endpoint.ask(
            method,
            url,
            self._reference.repository,
            scopes=self._scopes,
            headers=sent,
            body=body,
            come_from=self._come_from,
        ) as answer:
            yield answer


def _refused(
    endpoint: Endpoint, reference: Reference, answer: Answer, *, again: int = 0
) -> Failure:
    """The failure for an answer; the status `again` is worth another try."""
    failure = refusal(answer, endpoint.authority(reference.repository).secrets())
    failure.transient = failure.transient or answer.status == again
    return failure


def _documents(
    top: Manifest | Index, child: Callable[[Descriptor], Manifest | Index] | None
) -> Iterator[Manifest | Index]:
    """What is pushed, in its order: what an index names before the index itself."""
    if isinstance(top, Index):
        if child is None:
            what = "an index is pushed with `child`, which gives what it names"
            raise TypeError(what)
        for entry in top.manifests:
            yield from _documents(child(entry), child)
    yield top


def _in_parallel(work: Callable[[Descriptor], None], blobs: list[Descriptor]) -> None:
    """Do it for each, a few at a time; after the first failure no other begins."""
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="push") as pool:
        waiting = [pool.submit(work, blob) for blob in blobs]
        wait(waiting, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
    for future in waiting:
        if not future.cancelled():
            future.result()
