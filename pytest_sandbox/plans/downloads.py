"""Artefacts from the network, by their hash: fetched by the host, checked, and kept in a cache."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from pytest_sandbox.errors import Blame, DownloadError
from pytest_sandbox.transport.addresses import Failure, check_url, shown
from pytest_sandbox.transport.connections import open_client
from pytest_sandbox.transport.requests import get, trust

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_sandbox.transport.requests import Reply

ALGORITHMS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
"""The hashes that a recipe may give, and their length in hex digits."""
TRIES: Final = 4
_CHUNK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is at hand.

    `url` is the address of `urls` that served it and `final_url` the one behind its redirects
    (empty where the cache did); `size` is in bytes, `seconds` how long it took. `verified` is False
    where no checksum was given.
    """

    path: Path
    url: str
    final_url: str
    size: int
    sha256: str
    cached: bool
    seconds: float
    verified: bool = True


@dataclass(frozen=True, slots=True)
class _Wanted:
    algorithm: str
    checksum: str
    size: int


class WrongContent(Failure):
    """An address that served something else than what the recipe pins."""


class Downloader:
    """Fetches files into `<cache>/downloads/<algorithm>/<2 hex>/<hex>`.

    `timeout` is how long a server may be silent and `deadline` how long one file may take, in
    seconds; `max_bytes` its greatest size. `say` gets a line for every retry and wait. `environ`
    gives proxies and CA files. Safe for threads and for processes that share the cache: a file is
    downloaded once.
    """

    def __init__(
        self,
        cache: Path,
        *,
        offline: bool = False,
        timeout: float = 60.0,
        max_bytes: int = 4 << 30,
        say: Callable[[str], None] | None = None,
        environ: Mapping[str, str] = os.environ,
        deadline: float = 1800.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = Path(cache) / "downloads"
        self._offline = offline
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._say = say or (lambda _: None)
        self._environ = environ
        self._deadline = deadline
        self._sleep = sleep
        self._context: ssl.SSLContext | None = None

    def fetch(
        self, urls: Sequence[str], checksum: str, algorithm: str = "sha256", size: int = 0
    ) -> Download:
        """The file that hashes to `checksum`, from the cache or from the first of `urls` that
        serves it.

        With an empty `checksum` the file is always downloaded and nothing but its transport vouches
        for it. `size` is in bytes, 0 if it is not known. Raises DownloadError: `upstream` for 404
        and other content, `network` for what another try may mend, `host` for this machine's trust,
        disk or `offline`, `recipe` for a bad request.
        """
        started = time.monotonic()
        wanted = _request(urls, checksum, algorithm, size)
        try:
            if not wanted.checksum:
                return self._fetch_unverified(urls, wanted, started)
            path = self._path(wanted.algorithm, wanted.checksum)
            found = self._cached(path, wanted, urls[0], started)
            if found is None:
                self._refuse_offline(urls[0])
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._lock(path, urls[0]):
                    found = self._cached(path, wanted, urls[0], started, drop=True)
                    if found is None:
                        part = path.with_name(path.name + ".part")
                        found = self._download(urls, wanted, part, started)
        except OSError as error:
            raise _disk_error(error, self._folder) from error
        return found

    def _path(self, algorithm: str, checksum: str) -> Path:
        return self._folder / algorithm / checksum[:2] / checksum

    def _refuse_offline(self, url: str) -> None:
        if self._offline:
            what = f"{shown(url)} is not in the cache, and this run is offline"
            raise DownloadError(
                what, blame=Blame.HOST, next_step="run once without --sandbox-offline"
            )

    def _fetch_unverified(self, urls: Sequence[str], wanted: _Wanted, started: float) -> Download:
        self._refuse_offline(urls[0])
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(suffix=".part", dir=self._folder)
        os.close(descriptor)
        return self._download(urls, wanted, Path(name), started)

    def _cached(
        self, path: Path, wanted: _Wanted, url: str, started: float, *, drop: bool = False
    ) -> Download | None:
        """The cache's file if it is whole; `drop` (under the lock) removes one that is not."""
        body = _Body(wanted)
        try:
            with path.open("rb") as file:
                while block := file.read(_CHUNK):
                    body.hash(block)
        except FileNotFoundError:
            return None
        if body.checksum() != wanted.checksum:
            if drop:
                self._say(f"the cache's copy of {shown(url)} is damaged; it is fetched again")
                path.unlink(missing_ok=True)
            return None
        if wanted.size and body.size != wanted.size:
            failure = _wrong_size(url, wanted.size, body.size)
            raise DownloadError(failure.what, blame=failure.blame, next_step=failure.next_step)
        os.utime(path)  # its last use
        return Download(
            path=path,
            url=url,
            final_url="",
            size=body.size,
            sha256=body.sha256(),
            cached=True,
            seconds=time.monotonic() - started,
        )

    @contextmanager
    def _lock(self, path: Path, url: str) -> Iterator[None]:
        """One download of a file at a time, over all processes; the lock's file stays."""
        from filelock import FileLock, Timeout

        lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._say(f"another process downloads {shown(url)}; waiting for it")
            try:
                lock.acquire(timeout=self._deadline + self._timeout)
            except Timeout as error:
                what = f"another process has held {lock.lock_file} for too long"
                raise DownloadError(what, blame=Blame.HOST, next_step="end that process") from error
        try:
            yield
        finally:
            lock.release()

    def _download(
        self, urls: Sequence[str], wanted: _Wanted, part: Path, started: float
    ) -> Download:
        """Try each address in turn; publish the part file under its hash when one has served it."""
        if self._context is None:
            self._context = trust(self._environ, self._say)
        failures: list[Failure] = []
        try:
            with part.open("wb") as file:
                for url in urls:
                    body = _Body(wanted, file)
                    try:
                        final_url = self._fetch_one(url, body, started)
                    except Failure as failure:
                        failures.append(failure)
                        continue
                    file.flush()
                    os.fsync(file.fileno())
                    path = self._path(wanted.algorithm, wanted.checksum or body.checksum())
                    path.parent.mkdir(parents=True, exist_ok=True)
                    part.replace(path)
                    return Download(
                        path=path,
                        url=url,
                        final_url=final_url,
                        size=body.size,
                        sha256=body.sha256(),
                        cached=False,
                        seconds=time.monotonic() - started,
                        verified=bool(wanted.checksum),
                    )
        finally:
            part.unlink(missing_ok=True)
        raise _all_failed(failures)

    def _fetch_one(self, url: str, body: _Body, started: float) -> str:
        """Up to TRIES times one address; the address behind its redirects."""
        assert self._context is not None
        with open_client(self._environ, self._context, self._timeout) as client:
            for attempt in range(1, TRIES + 1):
                try:
                    with get(client, url, body.resume_headers()) as reply:
                        self._receive(reply, body, started)
                    body.verify(reply, url)
                except Failure as failure:
                    delay = max(2.0 ** (attempt - 1), failure.wait)
                    late = time.monotonic() + delay - started > self._deadline
                    if not failure.transient or attempt == TRIES or late:
                        raise
                    self._say(f"{failure.what}; try {attempt + 1} of {TRIES} in {delay:g} s")
                    self._sleep(delay)
                else:
                    return reply.url
        raise AssertionError  # the last try returns or raises

    def _receive(self, reply: Reply, body: _Body, started: float) -> None:
        body.begin(reply)
        length = reply.headers.get("content-length", "")
        most = self._max_bytes
        if length.isdecimal():
            total = body.size + int(length)
            if body.wanted.size and total != body.wanted.size:
                raise _wrong_size(reply.url, body.wanted.size, total)
            if total > most:
                raise _too_large(reply.url, most)
        for block in reply.blocks:
            body.write(block)
            if body.size > most:
                raise _too_large(reply.url, most)
            if time.monotonic() - started > self._deadline:
                what = f"{shown(reply.url)} is not through after {self._deadline:g} s"
                raise Failure(what, Blame.NETWORK, next_step="try again on a faster connection")


class _Body:
    """The bytes so far, over several tries of one address: their count, hashes and what a resume
    needs.
    """

    def __init__(self, wanted: _Wanted, file: IO[bytes] | None = None) -> None:
        self.wanted = wanted
        self._file = file
        self._restart()

    def _restart(self) -> None:
        self.size = 0
        self._etag = ""
        self._resumed = False
        self._hash = hashlib.new(self.wanted.algorithm)
        self._sha256 = hashlib.sha256()
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def hash(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        if self.wanted.algorithm != "sha256":
            self._hash.update(block)

    def write(self, block: bytes) -> None:
        assert self._file is not None
        self._file.write(block)
        self.hash(block)

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def checksum(self) -> str:
        return self.sha256() if self.wanted.algorithm == "sha256" else self._hash.hexdigest()

    def resume_headers(self) -> dict[str, str]:
        """Headers that ask for the rest, if the server named what it cut by a strong ETag."""
        if not self.size or not self._etag:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._etag}

    def begin(self, reply: Reply) -> None:
        """Go on after 206, start anew after 200. Raises Failure for a reply that does neither."""
        resuming = bool(self.resume_headers())
        if reply.status == 200:
            self._restart()
            etag = reply.headers.get("etag", "")
            self._etag = etag if etag.startswith('"') else ""
            return
        offset = re.match(r"bytes (\d+)-", reply.headers.get("content-range", ""))
        if reply.status == 206 and resuming and offset and int(offset[1]) == self.size:
            self._resumed = True
            return
        self._restart()
        what = f"{shown(reply.url)} answers {reply.status} to a request that was none for that part"
        raise Failure(what, Blame.UPSTREAM, transient=resuming)

    def verify(self, reply: Reply, url: str) -> None:
        """Hold what came to what was wanted. Raises Failure."""
        if self.wanted.size and self.size != self.wanted.size:
            raise _wrong_size(url, self.wanted.size, self.size)
        found = self.checksum()
        if not self.wanted.checksum or found == self.wanted.checksum:
            return
        resumed = self._resumed
        self._restart()
        algorithm, page = self.wanted.algorithm, reply.headers.get("content-type", "")
        what = f"{shown(url)} has {algorithm} {found}, not {self.wanted.checksum}"
        if page.startswith("text/html"):
            what += " (the server sent a web page)"
        raise WrongContent(
            what,
            Blame.UPSTREAM,
            next_step="find out why upstream changed it before you change the recipe's checksum",
            transient=resumed,  # two versions may have been mixed
        )


def _request(urls: Sequence[str], checksum: str, algorithm: str, size: int) -> _Wanted:
    algorithm = algorithm.lower().replace("-", "") or "sha256"
    checksum = checksum.strip().lower().removeprefix(f"{algorithm}:")
    first = shown(urls[0]) if urls else "a download"
    what = ""
    if not urls:
        what = "a download has no address"
    elif algorithm not in ALGORITHMS:
        what = f"{first}: {algorithm!r} is no known hash; expected {', '.join(ALGORITHMS)}"
    elif checksum and not re.fullmatch(f"[0-9a-f]{{{ALGORITHMS[algorithm]}}}", checksum):
        what = (
            f"{first}: {checksum!r} is no {algorithm}: {ALGORITHMS[algorithm]} hex digits expected"
        )
    elif size < 0:
        what = f"{first}: {size} is no size in bytes"
    if what:
        raise DownloadError(what, blame=Blame.RECIPE, next_step="correct the recipe's step")
    for url in urls:
        try:
            check_url(url, blame=Blame.RECIPE)
        except Failure as failure:
            raise _all_failed([failure]) from failure
    return _Wanted(algorithm, checksum, size)


def _wrong_size(url: str, expected: int, actual: int) -> Failure:
    what = f"{shown(url)} has {actual} bytes, not {expected}"
    next_step = "find out why upstream changed it before you change the recipe's size"
    return WrongContent(what, Blame.UPSTREAM, next_step=next_step)


def _too_large(url: str, most: int) -> Failure:
    what = f"{shown(url)} is larger than {most} bytes"
    return Failure(what, Blame.UPSTREAM, next_step="check the address")


def _all_failed(failures: list[Failure]) -> DownloadError:
    """One error for all addresses: other content says most, then what may be mended here, then the
    network.
    """

    def weight(failure: Failure) -> int:
        order = (Blame.HOST, Blame.NETWORK, Blame.UPSTREAM)
        if isinstance(failure, WrongContent):
            return -1
        return order.index(failure.blame) if failure.blame in order else len(order)

    worst = min(failures, key=weight)
    what = worst.what
    if len(failures) > 1:
        others = "; ".join(failure.what for failure in failures if failure is not worst)
        what += f" (and of {len(failures)} addresses none served it: {others})"
    return DownloadError(
        what,
        blame=worst.blame,
        next_step=worst.next_step,
        details="\n".join(f"{failure.blame}: {failure.what}" for failure in failures),
    )


def _disk_error(error: OSError, folder: Path) -> DownloadError:
    if error.errno in _FULL:
        what, next_step = f"the disk of {folder} is full", "free some space, or move the cache"
    else:
        what, next_step = f"the download cache {folder}: {error}", "check its owner and permissions"
    return DownloadError(what, blame=Blame.HOST, next_step=next_step)
