"""Published UDP ports: a socket for each client, so that answers find their way back."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE: Final = 90.0
"""Seconds after which a silent client is forgotten."""
MOST: Final = 1024
"""Clients of one port; the one that is silent for longest makes room."""
_BATCH: Final = 64
_SIZE: Final = 65535
_IP_PKTINFO: Final = 8


class EventLoop(Protocol):
    """What this needs of forward.Loop."""

    def want(self, descriptor: int, mask: int, call: Callable[[int], None]) -> None: ...

    def forget(self, descriptor: int) -> None: ...


class Client:
    """One client: where it is, which address of the host it asked, its socket in the sandbox."""

    __slots__ = ("address", "inner", "local", "seen")

    def __init__(
        self, address: Any, local: list[tuple[int, int, bytes]], inner: socket.socket
    ) -> None:
        self.address = address
        self.local = local
        self.inner = inner
        self.seen = time.monotonic()


class Datagrams:
    """One published UDP port."""

    def __init__(self, loop: EventLoop, outer: socket.socket, target: tuple[str, int]) -> None:
        self._loop = loop
        self._outer = outer
        self._target = target
        self.clients: OrderedDict[Any, Client] = OrderedDict()
        # An answer comes from the address that was asked, on a host with several.
        if outer.family == socket.AF_INET6:
            outer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            outer.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        loop.want(outer.fileno(), select.EPOLLIN, self._from_clients)

    def expire(self, now: float) -> None:
        """Forget the clients that have been silent for long."""
        while self.clients:
            key, client = next(iter(self.clients.items()))
            if now - client.seen < IDLE:
                return
            self._drop(key)

    def _from_clients(self, _: int) -> None:
        for _turn in range(_BATCH):
            try:
                data, ancillary, _flags, address = self._outer.recvmsg(_SIZE, 128)
            except OSError:  # nothing more, or a client that refused an answer
                return
            local = _sender(self._outer.family, ancillary)
            key = (address, *local)
            client = self.clients.get(key) or self._meet(key, address, local)
            if client is None:
                continue
            client.seen = time.monotonic()
            self.clients.move_to_end(key)
            with contextlib.suppress(OSError):  # a datagram may be lost
                client.inner.send(data)

    def _meet(self, key: Any, address: Any, local: list[tuple[int, int, bytes]]) -> Client | None:
        if len(self.clients) >= MOST:
            self._drop(next(iter(self.clients)))
        try:
            inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except OSError:
            return None
        try:
            inner.setblocking(False)
            inner.connect(self._target)
        except OSError:
            inner.close()
            return None
        client = self.clients[key] = Client(address, local, inner)
        self._loop.want(inner.fileno(), select.EPOLLIN, lambda _: self._from_sandbox(key))
        return client

    def _from_sandbox(self, key: Any) -> None:
        client = self.clients[key]
        for _turn in range(_BATCH):
            try:
                data = client.inner.recv(_SIZE)
            except OSError:  # nothing more, or nobody listens on that port
                return
            client.seen = time.monotonic()
            self.clients.move_to_end(key)
            with contextlib.suppress(OSError):
                self._outer.sendmsg([data], client.local, 0, client.address)

    def _drop(self, key: Any) -> None:
        client = self.clients.pop(key)
        self._loop.forget(client.inner.fileno())
        client.inner.close()


def _sender(family: int, ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The control message that sends an answer from where a datagram came to."""
    for level, kind, data in ancillary:
        if family == socket.AF_INET6 and (level, kind) == (
            socket.IPPROTO_IPV6,
            socket.IPV6_PKTINFO,
        ):
            return [(level, kind, data)]
        if family == socket.AF_INET and (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return [(level, kind, bytes(4) + data[4:8] + bytes(4))]  # struct in_pktinfo
    return []
