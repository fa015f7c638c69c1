"""Published ports of a sandbox: reached from the host where they are bound, and only there."""

from __future__ import annotations

import os
import socket

import pytest

from pytest_sandbox.oci.network.ports import Port
from tests.oci.network.conftest import attached

PORTS = [Port(8080), Port(53, protocol="udp"), Port(8080, 0, "::1"), Port(8081)]

SERVICES = """
import socket, threading
def stream(address, number):
    sock = socket.create_server((address, number))
    def serve():
        while True:
            conn, peer = sock.accept()
            with conn:
                text = b""
                while data := conn.recv(65536):
                    text += data
                conn.sendall(text.upper() + b" from " + peer[0].encode())
    threading.Thread(target=serve).start()
def datagrams(number):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", number))
    def serve():
        while True:
            data, peer = sock.recvfrom(65536)
            sock.sendto(data.upper(), peer)
    threading.Thread(target=serve).start()
stream("0.0.0.0", 8080)
stream("127.0.0.1", 8081)
datagrams(53)
print("up", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def serving(user):
    with attached(user, stacks=["slirp4netns"], ports=PORTS) as box:
        assert box.run(SERVICES, stays=True) == "up\n"
        yield box


def _ask(place, text=b"hello"):
    with socket.create_connection(place, 10) as sock:
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(65536):
            got += data
        return got


def test_they_answer_where_they_are_bound_and_nowhere_else(serving, host_address):
    told = serving.told["ports"]
    assert [port["container"] for port in told] == [8080, 53, 8080, 8081]
    assert all(port["host"] > 1023 for port in told)
    assert _ask(serving.place(0)) == b"HELLO from 10.0.2.100"
    assert _ask(serving.place(2)) == b"HELLO from 10.0.2.100"  # [::1]
    big = b"x" * 3_000_000
    assert _ask(serving.place(0), big) == big.upper() + b" from 10.0.2.100"
    for elsewhere in (host_address, "127.0.0.2"):
        with pytest.raises(OSError, match="refused"):
            _ask((elsewhere, told[0]["host"]))


def test_datagrams_are_answered(serving):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for sock, text in ((one, b"a" * 20_000), (two, b"b")):
            sock.settimeout(10)
            sock.connect(serving.place(1))
            sock.send(text)
        assert two.recv(65536) == b"B"
        assert one.recv(65536) == b"A" * 20_000


def test_a_service_on_the_sandboxs_loopback_is_its_own(serving):
    with pytest.raises(ConnectionResetError):
        _ask(serving.place(3))


def test_a_port_in_use_ends_it_with_nothing_left(user):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with attached(user, stacks=["slirp4netns"], ports=[Port(80, number)]) as box:
            assert f"port 127.0.0.1:{number}/tcp" in box.told["error"]["what"]
            assert "already in use" in box.told["error"]["what"]
            assert len(box.told["children"]) == 1  # the sandbox itself


def test_the_port_is_free_again_after_the_sandbox(user):
    with attached(user, stacks=["slirp4netns"], ports=[Port(80)]) as box:
        place = box.place()
        assert box.end() == []
        with socket.create_server(place):
            pass


def test_a_low_port_is_roots(user):
    low = 1 if user == "root" else 2
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", low))
        except OSError:
            if os.geteuid() == 0:
                pytest.skip(f"port {low} is in use here")
    with attached(user, stacks=["slirp4netns"], ports=[Port(80, low)]) as box:
        if user == "root":
            assert box.told["ports"][0]["host"] == low
        else:
            assert "ordinary users" in box.told["error"]["what"]
            assert f"ip_unprivileged_port_start={low}" in box.told["error"]["next_step"]


def test_the_last_words_of_a_sandbox_arrive(user):
    """As with `echo hi | nc -l 8080` for its only process."""
    with attached(user, stacks=["slirp4netns"], ports=[Port(8080)]) as box:
        assert box.run(SERVICES, stays=True) == "up\n"
        sent = b"x" * 2_000_000
        with socket.create_connection(box.place(), 10) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            first = sock.recv(1)
            assert box.end() == []  # with some of it in the proxy, and more in the kernel
            got = b""
            while data := sock.recv(65536):
                got += data
        whole = sent.upper() + b" from 10.0.2.100"
        assert whole.startswith(first + got)
        assert len(got) > 1_000_000
