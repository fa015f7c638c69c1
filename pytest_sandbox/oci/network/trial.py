"""Does a stack carry a stream to its end? pasta of 2023 loses ends of streams, and bytes, on newer
kernels (seen with 2023-03 on Linux 6.18; 2025-05 is well). A sandbox would hang or get wrong data.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Final

from pytest_sandbox.oci import linux

PATIENCE: Final = 1.0
"""Seconds; a good stack needs some milliseconds."""
_SIZE: Final = 300_000


def stream_fault(namespace: int) -> str:
    """Send a stream from a network namespace to this host and back; what is wrong, or "".

    The host's side listens on an address of its own for a moment, and talks only to who knows a
    secret. A host with no address but its loopback cannot try: "" too.
    """
    address = host_address()
    if not address:
        return ""
    secret = os.urandom(16)
    payload = secret + os.urandom(4096) * (_SIZE // 4096)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            return ""
        listener.listen()
        listener.settimeout(PATIENCE)
        place = listener.getsockname()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                linux.setns(namespace, linux.CLONE_NEWNET)
                status = 0 if _inside(place, payload) else 1
            finally:
                os._exit(status)
        with contextlib.suppress(OSError):
            _echo(listener, secret)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if status == 0 else "it loses data or the ends of streams on this kernel"


def host_address() -> str:
    """The host's IPv4 address towards other networks, or ""."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("198.51.100.1", 9))  # TEST-NET-2; this sends nothing
        address = str(sock.getsockname()[0])
        return "" if address.startswith("127.") else address
    return ""


def _echo(listener: socket.socket, secret: bytes) -> None:
    """Send back what comes, after its end."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        conn, _ = listener.accept()
        with conn:
            conn.settimeout(PATIENCE)
            text = b""
            while len(text) < len(secret) and (data := conn.recv(len(secret) - len(text))):
                text += data
            if text != secret:
                continue
            while data := conn.recv(1 << 18):
                text += data
            conn.sendall(text)
            return


def _inside(place: tuple[str, int], payload: bytes) -> bool:
    with socket.create_connection(place, PATIENCE) as sock:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        end = time.monotonic() + PATIENCE
        while (left := end - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
            data = sock.recv(1 << 18)
            if not data:
                return got == payload
            got += data
    return False
