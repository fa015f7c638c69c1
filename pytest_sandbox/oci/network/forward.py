"""Published ports: a proxy between the host's sockets and the sandbox's address.

It runs inside the sandbox's network namespace, with the host's sockets opened before: these stay
in the host's network. So publishing does not depend on the stack, and the proxy can reach nothing
of the host. A service sees the sandbox's own address as its client's; it has to listen on that
address or on all of them, not only on 127.0.0.1 (as with Docker).
"""

from __future__ import annotations

import contextlib
import errno
import math
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.network.datagrams import Datagrams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.oci.network.ports import Port

LAST_WORDS: Final = 1.0
"""Seconds for what a sandbox sent before its end."""
_CHUNK: Final = 1 << 18
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RESET: Final = struct.pack("ii", 1, 0)
_GONE: Final = select.EPOLLERR | select.EPOLLHUP


class Loop:
    """epoll, with what to do for each descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}

    def want(self, descriptor: int, mask: int, call: Callable[[int], None]) -> None:
        """Call `call(events)` for these events (and for errors); for none at all with a mask 0."""
        if not mask:
            self.forget(descriptor)
        elif descriptor in self._calls:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)
            self._calls[descriptor] = call

    def forget(self, descriptor: int) -> None:
        """No more events for this one. To be called before it is closed."""
        if self._calls.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """No more events at all."""
        self._calls.clear()
        self._epoll.close()

    def turn(self, timeout: float) -> None:
        """Wait for events, at most `timeout` seconds (-1: for ever), and deal with them."""
        ready = [(self._calls.get(fd), fd, events) for fd, events in self._epoll.poll(timeout)]
        for call, descriptor, events in ready:
            # One that was forgotten in this turn may be another socket by now.
            if call is not None and self._calls.get(descriptor) is call:
                call(events)


class Forwarder:
    """All published ports of one sandbox. `target` is its address."""

    def __init__(self, opened: Sequence[tuple[Port, socket.socket]], target: str) -> None:
        self._loop = Loop()
        self._target = target
        self._paused: list[Callable[[], None]] = []
        self._datagrams: list[Datagrams] = []
        self._relays: set[Relay] = set()
        self._listeners: list[int] = []
        self._over = False
        for port, sock in opened:
            if port.protocol == "udp":
                place = (target, port.container)
                self._datagrams.append(Datagrams(self._loop, sock, place))
            else:
                self._listen(sock, port.container)

    def serve(self, until: Sequence[int]) -> None:
        """Forward until one of the descriptors `until` has an event or hangs up, then what the
        sandbox still said (at most LAST_WORDS seconds), and close everything.
        """
        for descriptor in until:
            self._loop.want(descriptor, select.EPOLLIN, self._stop)
        while not self._over:
            busy = any(datagrams.clients for datagrams in self._datagrams)
            self._loop.turn(0.1 if self._paused else 10 if busy else -1)
            for again in self._paused:
                again()
            self._paused = []
            now = time.monotonic()
            for datagrams in self._datagrams:
                datagrams.expire(now)
        for descriptor in (*until, *self._listeners):
            self._loop.forget(descriptor)
        end = time.monotonic() + LAST_WORDS
        while (left := end - time.monotonic()) > 0 and any(r.unsaid() for r in self._relays):
            self._loop.turn(left)
        for relay in list(self._relays):
            relay.close()
        for datagrams in self._datagrams:
            datagrams.expire(math.inf)
        self._loop.close()

    def _stop(self, events: int) -> None:
        self._over = bool(events)

    def _listen(self, listener: socket.socket, number: int) -> None:
        def accept(_: int) -> None:
            try:
                client, _peer = listener.accept()
            except OSError as error:
                if error.errno in _FULL:  # no descriptor is left: look again in a while
                    self._loop.forget(listener.fileno())
                    self._paused.append(begin)
                return
            Relay(self._loop, client, (self._target, number), self._relays)

        def begin() -> None:
            self._loop.want(listener.fileno(), select.EPOLLIN, accept)

        self._listeners.append(listener.fileno())
        begin()


class Relay:
    """One TCP connection: bytes in both directions, each end of stream passed on by itself."""

    def __init__(
        self, loop: Loop, client: socket.socket, target: tuple[str, int], known: set[Relay]
    ) -> None:
        self._loop = loop
        self._known = known
        known.add(self)
        self._connected = False
        self._ends = [client]
        self._calls: list[Callable[[int], None]] = []
        try:
            self._ends.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for end in self._ends:
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            with contextlib.suppress(BlockingIOError):
                self._ends[1].connect(target)
        except OSError:
            self._reset()
            return
        self._reading = [True, True]
        self._waiting = [memoryview(b""), memoryview(b"")]
        """What still has to be written to each end."""
        self._calls += (
            lambda events: self._event(0, events),
            lambda events: self._event(1, events),
        )
        self._ask()

    def _event(self, side: int, events: int) -> None:
        try:
            if not self._connected:
                problem = self._ends[1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if problem:
                    raise OSError(problem, "")
                if side == 0:
                    return
                self._connected = True
            if self._waiting[side] and events & (select.EPOLLOUT | _GONE):
                self._push(side)
            if events & (select.EPOLLIN | _GONE) and self._may_read(side):
                self._pull(side)
        except OSError:
            self._reset()
            return
        if self._reading == [False, False] and not any(self._waiting):
            self.close()
        else:
            self._ask()

    def _may_read(self, side: int) -> bool:
        return self._connected and self._reading[side] and not self._waiting[1 - side]

    def _pull(self, side: int) -> None:
        try:
            data = self._ends[side].recv(_CHUNK)
        except BlockingIOError:
            return
        if data:
            self._waiting[1 - side] = memoryview(data)
            self._push(1 - side)
        else:
            self._reading[side] = False
            self._ends[1 - side].shutdown(socket.SHUT_WR)

    def _push(self, side: int) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = self._ends[side].send(self._waiting[side])
            self._waiting[side] = self._waiting[side][sent:]

    def _ask(self) -> None:
        for side, end in enumerate(self._ends):
            mask = select.EPOLLIN if self._may_read(side) else 0
            if self._waiting[side] or (side == 1 and not self._connected):
                mask |= select.EPOLLOUT
            self._loop.want(end.fileno(), mask, self._calls[side])

    def _reset(self) -> None:
        """An error at one end is an error at the other one."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def unsaid(self) -> bool:
        """Whether the sandbox's side has not ended yet, or the client has not got all of it."""
        return self._connected and (self._reading[1] or bool(self._waiting[0]))

    def close(self) -> None:
        """Close both ends."""
        self._known.discard(self)
        for end in self._ends:
            self._loop.forget(end.fileno())
            end.close()
        self._calls.clear()  # they refer to this object
