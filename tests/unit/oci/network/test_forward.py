"""The proxy of published ports, between real sockets on loopback."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.oci.network import datagrams
from pytest_sandbox.oci.network.forward import Forwarder
from pytest_sandbox.oci.network.ports import Port, open_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = "127.0.0.9"
"""Stands for the sandbox's address."""


@contextmanager
def forwarding(*ports: Port) -> Iterator[list[Port]]:
    """A running proxy; gives the ports with their numbers."""
    opened = open_ports(ports)
    over, end = os.pipe()
    forwarder = Forwarder(opened, INSIDE)
    thread = threading.Thread(target=forwarder.serve, args=([over],))
    thread.start()
    try:
        yield [port for port, _ in opened]
    finally:
        os.close(end)
        thread.join(10)
        os.close(over)
        for _, sock in opened:
            sock.close()
        assert not thread.is_alive()


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server((INSIDE, 0)) as sock:
        sock.settimeout(10)
        yield sock


@pytest.fixture
def udp_service() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((INSIDE, 0))
        sock.settimeout(10)
        yield sock


def _all(sock: socket.socket) -> bytes:
    text = b""
    while data := sock.recv(65536):
        text += data
    return text


def test_each_end_of_stream_goes_by_itself(service: socket.socket) -> None:
    question, answer = os.urandom(3_000_000), os.urandom(2_000_000)
    heard = []

    def serve() -> None:
        conn, _ = service.accept()
        with conn:
            heard.append(_all(conn))  # to the client's end of stream, then the answer
            conn.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        forwarding(Port(service.getsockname()[1])) as (port,),
        socket.create_connection(("127.0.0.1", port.host), 10) as client,
    ):
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        assert _all(client) == answer
    thread.join()
    assert heard == [question]


def test_a_server_may_end_its_side_first(service: socket.socket) -> None:
    with (
        forwarding(Port(service.getsockname()[1])) as (port,),
        socket.create_connection(("127.0.0.1", port.host), 10) as client,
    ):
        conn, _ = service.accept()
        with conn:
            conn.sendall(b"bye")
            conn.shutdown(socket.SHUT_WR)
            assert _all(client) == b"bye"
            client.sendall(b"still here")
            client.shutdown(socket.SHUT_WR)
            assert _all(conn) == b"still here"


def test_a_port_where_nobody_listens_is_reset() -> None:
    with socket.socket() as probe:
        probe.bind((INSIDE, 0))
        number = probe.getsockname()[1]
        with (
            forwarding(Port(number)) as (port,),
            pytest.raises(ConnectionResetError),  # it may come before connect(2) returns
            socket.create_connection(("127.0.0.1", port.host), 10) as client,
        ):
            client.recv(1)


def test_a_reset_reaches_the_other_side(service: socket.socket) -> None:
    with forwarding(Port(service.getsockname()[1])) as (port,):
        client = socket.create_connection(("127.0.0.1", port.host), 10)
        conn, _ = service.accept()
        with conn:
            client.sendall(b"x")
            assert conn.recv(1) == b"x"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            conn.settimeout(10)
            with pytest.raises(ConnectionResetError):
                conn.recv(1)


def test_a_slow_reader_stops_the_writer_and_uses_no_processor(service: socket.socket) -> None:
    with (
        forwarding(Port(service.getsockname()[1])) as (port,),
        socket.create_connection(("127.0.0.1", port.host), 10) as client,
    ):
        conn, _ = service.accept()
        with conn:
            client.setblocking(False)
            sent = 0
            chunk = bytes(1 << 20)
            for _ in range(200):
                try:
                    sent += client.send(chunk)
                except BlockingIOError:
                    time.sleep(0.005)
            assert sent < 100 << 20
            before = time.process_time()
            time.sleep(0.3)
            assert time.process_time() - before < 0.15
            client.setblocking(True)
            client.shutdown(socket.SHUT_WR)
            got = 0
            while data := conn.recv(1 << 20):
                got += len(data)
            assert got == sent


def test_many_at_once(service: socket.socket) -> None:
    with ExitStack() as stack:
        (port,) = stack.enter_context(forwarding(Port(service.getsockname()[1])))
        pairs = []
        for _ in range(150):
            client = socket.create_connection(("127.0.0.1", port.host), 10)
            conn, _ = service.accept()
            pairs.append((stack.enter_context(client), stack.enter_context(conn)))
        for number, (client, _) in enumerate(pairs):
            client.sendall(b"%d" % number)
        assert {conn.recv(10) for _, conn in pairs} == {b"%d" % n for n in range(150)}


def test_ipv6_outside(service: socket.socket) -> None:
    with (
        forwarding(Port(service.getsockname()[1], 0, "::1")) as (port,),
        socket.create_connection(("::1", port.host), 10) as client,
    ):
        client.sendall(b"six")
        conn, _ = service.accept()
        with conn:
            assert conn.recv(3) == b"six"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_datagrams_and_their_answers(udp_service: socket.socket, address: str) -> None:
    number = udp_service.getsockname()[1]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # A wildcard answers from the address that was asked.
    near = {"0.0.0.0": "127.0.0.5", "::": "::1"}.get(address, address)
    with forwarding(Port(number, 0, address, "udp")) as (port,), ExitStack() as stack:
        clients = []
        for name in (b"a", b"b"):
            client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            client.settimeout(10)
            client.connect((near, port.host))
            client.send(name * 9000)
            clients.append((name, client))
        sources = {}
        for _ in clients:
            data, source = udp_service.recvfrom(65536)
            sources[data[:1]] = source
            udp_service.sendto(data.upper(), source)
        for name, client in clients:
            assert client.recv(65536) == name.upper() * 9000
        udp_service.sendto(b"late", sources[b"a"])
        assert clients[0][1].recv(100) == b"late"


def test_an_empty_datagram_is_passed_on(udp_service: socket.socket) -> None:
    with (
        forwarding(Port(udp_service.getsockname()[1], protocol="udp")) as (port,),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.sendto(b"", ("127.0.0.1", port.host))
        assert udp_service.recvfrom(10)[0] == b""


def test_silent_clients_make_room(
    udp_service: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "MOST", 3)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with (
        forwarding(Port(udp_service.getsockname()[1], protocol="udp")) as (port,),
        ExitStack() as stack,
    ):
        base = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(10):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.sendto(b"x", ("127.0.0.1", port.host))
            udp_service.recvfrom(10)
        assert len(os.listdir("/proc/self/fd")) == base + 10 + 3  # noqa: PTH208
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_client_is_forgotten_after_a_while(udp_service: socket.socket) -> None:
    from pytest_sandbox.oci.network.forward import Loop

    ((port, sock),) = open_ports([Port(80, protocol="udp")])
    with sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        loop = Loop()
        one = datagrams.Datagrams(loop, sock, udp_service.getsockname())
        client.sendto(b"x", ("127.0.0.1", port.host))
        loop.turn(10)
        assert len(one.clients) == 1
        one.expire(time.monotonic() + datagrams.IDLE - 5)
        assert len(one.clients) == 1
        one.expire(time.monotonic() + datagrams.IDLE + 1)
        assert not one.clients
