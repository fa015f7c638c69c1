"""The bytes of one blob, over several tries: resumed where they were cut, verified as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from pytest_sandbox.errors import Blame, InvalidImage
from pytest_sandbox.oci.digests import Hasher, wrong_size
from pytest_sandbox.oci.exchange import refusal
from pytest_sandbox.oci.retries import RetryRule, Tries
from pytest_sandbox.transport.addresses import Failure, shown

if TYPE_CHECKING:
    from pytest_sandbox.oci.descriptors import Descriptor
    from pytest_sandbox.oci.endpoint import Endpoint
    from pytest_sandbox.oci.exchange import Answer
    from pytest_sandbox.oci.progress import Bar


class Sink(Protocol):
    """Where a blob's bytes go as they come. They are verified only when the transfer has ended."""

    def write(self, block: bytes, /) -> object:
        """Take the next bytes."""

    def restart(self) -> None:
        """Forget all bytes: the blob comes again from its start."""


class Memory:
    """A sink that keeps the bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, block: bytes) -> None:
        """Take the next bytes."""
        self._parts.append(block)

    def restart(self) -> None:
        """Forget all bytes."""
        self._parts.clear()

    def data(self) -> bytes:
        """All bytes."""
        return b"".join(self._parts)


class Transfer:
    """One blob on its way from one endpoint, or from several in turn, into a sink."""

    def __init__(self, descriptor: Descriptor, sink: Sink, bar: Bar | None = None) -> None:
        self._descriptor = descriptor
        self._sink = sink
        self._bar = bar
        self._hasher = Hasher(descriptor.digest, descriptor.size)
        self._etag = ""
        self._resumed = False

    def fetch(self, endpoint: Endpoint, repository: str, rule: RetryRule) -> None:
        """The whole blob from one endpoint. Raises Failure where it cannot be had, InvalidImage
        where it is something else.

        Bytes that other tries of this endpoint left are kept if the server can go on from there. A
        blob that was put together and is wrong is fetched once more from its start.
        """
        self.restart()
        tries, again = Tries(rule), False
        while True:
            try:
                self._try(endpoint, repository)
            except Failure as failure:
                tries.wait(failure)
            except InvalidImage as error:
                if again or not self._resumed:
                    raise
                again = True
                rule.say(f"{error.what} (it was resumed); fetched again from its start")
                self.restart()
            else:
                return

    def restart(self) -> None:
        """Begin anew, whatever came."""
        if self._hasher.size:
            self._sink.restart()
            if self._bar is not None:
                self._bar.restart()
        self._hasher.reset()
        self._etag, self._resumed = "", False

    def _try(self, endpoint: Endpoint, repository: str) -> None:
        url = endpoint.url(repository, f"blobs/{self._descriptor.digest}")
        headers = self._resume_headers()
        with endpoint.ask("GET", url, repository, headers=headers) as answer:
            self._begin(answer, resuming=bool(headers))
            for block in answer.blocks():
                self._hasher.update(block)
                self._sink.write(block)
                if self._bar is not None:
                    self._bar.advance(len(block))
            if self._hasher.size < self._descriptor.size:
                what = (
                    f"{shown(answer.url)} ended after {self._hasher.size} of"
                    f" {self._descriptor.size} bytes"
                )
                raise Failure(what, Blame.NETWORK, next_step="try again later", transient=True)
            self._hasher.check(source=str(endpoint))

    def _resume_headers(self) -> dict[str, str]:
        """Headers that ask for the rest, if the server named what it cut by a strong ETag."""
        if not self._hasher.size or not self._etag:
            return {}
        return {"Range": f"bytes={self._hasher.size}-", "If-Range": self._etag}

    def _begin(self, answer: Answer, *, resuming: bool) -> None:
        """Go on after 206, start anew after 200. Raises Failure for a reply that does neither."""
        wanted = self._descriptor.size
        if answer.status == 200:
            self.restart()
            etag = answer.header("etag")
            self._etag = etag if re.fullmatch(r'"[!#-~]*"', etag) else ""
            length = answer.header("content-length")
            if length.isdecimal() and int(length[:20]) != wanted:
                raise wrong_size(self._descriptor.digest, wanted, length[:20])
            return
        span = re.match(r"bytes (\d{1,20})-", answer.header("content-range"))
        if answer.status == 206 and resuming and span and int(span[1]) == self._hasher.size:
            self._resumed = True
            return
        if answer.status in (206, 416):
            self.restart()
            what = (
                f"{shown(answer.url)} answers {answer.status} to a request that was none for that"
                " part"
            )
            raise Failure(what, Blame.UPSTREAM, transient=resuming, status=answer.status)
        raise refusal(answer)
