"""Messages between the supervisor and its clients: one JSON object each, descriptors beside it."""

from __future__ import annotations

import array
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INLINE: Final = 32 << 10
"""What is longer goes through a memory file: a packet must fit the socket's buffer."""
_MOST: Final = 64
_ROOM: Final = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_decode: Final = json.JSONDecoder().decode


def send(channel: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message. Raises OSError (EPIPE) when nobody is there."""
    data = _encode(message).encode("utf-8", "surrogateescape")
    if len(data) <= _INLINE:
        _send(channel, b"J" + data, fds)
        return
    with os.fdopen(os.memfd_create("pytest-sandbox-message"), "w+b", buffering=0) as file:
        file.write(data)
        _send(channel, b"F", [*fds, file.fileno()])


def _send(channel: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    ancillary = []
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors (close-on-exec); None at the end."""
    try:
        data, ancillary, _, _ = channel.recvmsg(_INLINE + 1, _ROOM, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data:
        return None
    received = list(fds)
    if data[:1] == b"F":
        with os.fdopen(received.pop(), "rb") as file:
            file.seek(0)
            data = b"J" + file.read()
    return _decode(data[1:].decode("utf-8", "surrogateescape")), received


def end_of(descriptor: int) -> socket.socket:
    """The end of a channel, from its descriptor. (Without its kind, Python would ask for it.)"""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel that keeps the borders of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
