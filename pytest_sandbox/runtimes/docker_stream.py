"""Two-way streams of an engine: an HTTP connection that is upgraded, and then ours alone.

The SDK can do this too, but it leaves sockets open and may swallow the first bytes of a stream.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from pytest_sandbox.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtimes.docker_context import Endpoint

_TIMEOUT: Final = 60.0


class StreamRefused(Exception):
    """The engine answered an upgrade with an error: `status` and its text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def open_stream(
    endpoint: Endpoint,
    client: Any,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Channel:
    """POST `path` and take over the connection. Raises StreamRefused, RuntimeUnavailable."""
    where = urlsplit(client._url(path)).path + (f"?{urlencode(query)}" if query else "")
    # Without a body not one byte may follow the header: it would be the first of the stream.
    data = b"" if body is None else json.dumps(body).encode()
    header = (
        f"POST {where} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    sock, process = _dial(endpoint)
    try:
        sock.settimeout(_TIMEOUT)
        sock.sendall(header.encode() + data)
        status, early = _answer(sock)
        if status not in {101, 200}:
            while not early.rstrip().endswith(b"}") and (chunk := sock.recv(1 << 16)):
                early += chunk
            raise StreamRefused(status, _message(early))
        sock.settimeout(None)
    except OSError as exc:
        _close(sock, process)
        msg = f"the engine at {endpoint.url} ended a connection: {exc}"
        raise RuntimeUnavailable(msg, next_step="look at the engine's own log") from exc
    except BaseException:
        _close(sock, process)
        raise
    return Channel(sock, early, process)


def _dial(endpoint: Endpoint) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    if (path := endpoint.socket) is not None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(_TIMEOUT)
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return sock, None
    parts = urlsplit(endpoint.url)
    if parts.scheme == "ssh":
        return _dial_by_ssh(endpoint.url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 2375), _TIMEOUT)
    if not endpoint.tls_folder:
        return sock, None
    folder = Path(endpoint.tls_folder)
    tls = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if not endpoint.tls_verify:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return tls.wrap_socket(sock, server_hostname=parts.hostname), None


def _dial_by_ssh(url: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """What Docker's own command line does: the engine's socket at the other end of ssh's pipes."""
    parts = urlsplit(url)
    argv = ["ssh"]
    if parts.username:
        argv += ["-l", parts.username]
    if parts.port:
        argv += ["-p", str(parts.port)]
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*argv, "--", parts.hostname or "", "docker", "system", "dial-stdio"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
    return ours, process


def _answer(sock: socket.socket) -> tuple[int, bytes]:
    """Read the header of the answer: its status, and what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(1 << 14)
        if not chunk or len(data) > 1 << 17:
            msg = "no answer"
            raise OSError(msg)
        data += chunk
    header, _, rest = data.partition(b"\r\n\r\n")
    return int(header.split(None, 2)[1]), rest


def _message(body: bytes) -> str:
    start, end = body.find(b"{"), body.rfind(b"}")
    with contextlib.suppress(ValueError):
        found = json.loads(body[start : end + 1])
        return str(found.get("message") or found.get("cause") or found)
    return body.decode("utf-8", "replace")


def _close(sock: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    if process is not None:
        process.kill()
        process.wait()


class Channel:
    """A raw stream; the bytes that came together with the header come first."""

    def __init__(
        self, sock: socket.socket, early: bytes, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self._sock = sock
        self._early = early
        self._process = process
        self._closed = False

    def wait(self, seconds: float | None) -> bool:
        """Whether `recv` has something (or the end) within so many seconds."""
        if self._early or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            return True
        poller = select.poll()
        poller.register(self._sock.fileno(), select.POLLIN)
        return bool(poller.poll(None if seconds is None else max(seconds, 0) * 1000))

    def recv(self, size: int, /) -> bytes:
        """The next bytes, empty at the end."""
        if self._early:
            data, self._early = self._early[:size], self._early[size:]
            return data
        try:
            return self._sock.recv(size)
        except ConnectionError:
            return b""

    def sendall(self, data: bytes, /) -> None:
        """Write everything."""
        self._sock.sendall(data)

    def send_some(self, data: memoryview) -> int | None:
        """Write what goes without waiting: the number of bytes; None when nobody reads any more."""
        self._sock.setblocking(False)
        try:
            return self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except ConnectionError:
            return None
        finally:
            self._sock.setblocking(True)

    def end_input(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection; may be called again."""
        if not self._closed:
            self._closed = True
            _close(self._sock, self._process)
