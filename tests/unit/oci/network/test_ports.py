"""What -p may say, and the host's side of a published port."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pytest_sandbox.errors import SandboxError, UsageError
from pytest_sandbox.oci.network.ports import Port, open_ports, parse_ports


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [Port(80)]),
        (":80", [Port(80)]),
        ("0:80", [Port(80)]),
        ("8080:80", [Port(80, 8080)]),
        ("8080:80/tcp", [Port(80, 8080)]),
        ("5353:53/UDP", [Port(53, 5353, protocol="udp")]),
        ("127.0.0.2::80", [Port(80, 0, "127.0.0.2")]),
        ("0.0.0.0:8080:80", [Port(80, 8080, "0.0.0.0")]),
        ("[::1]:8080:80", [Port(80, 8080, "::1")]),
        ("[0:0:0::1]::53/udp", [Port(53, 0, "::1", "udp")]),
        ("7000-7002:80-82", [Port(80, 7000), Port(81, 7001), Port(82, 7002)]),
        ("80-81", [Port(80), Port(81)]),
    ],
)
def test_what_it_may_say(text: str, ports: list[Port]) -> None:
    assert list(parse_ports(text)) == ports


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the sandbox's port is missing"),
        ("8080:", "the sandbox's port is missing"),
        ("http", "'http' is no port"),
        ("80/sctp", "'sctp' is no protocol"),
        ("80/", "'' is no protocol"),
        ("0", "port 0 is not between 1 and 65535"),
        ("65536:80", "port 65536 is not between 0 and 65535"),
        ("8080:80:80", "'8080' is no IPv4 address"),
        ("localhost:8080:80", "'localhost' is no IPv4 address"),
        ("::1:8080:80", "an IPv6 address stands in brackets"),
        ("[::1]:80", "after [ADDRESS] stands :HOST:PORT"),
        ("[::1:80", "after [ADDRESS] stands :HOST:PORT"),
        ("[]:80:80", "'' is no IPv6 address"),
        ("7000-7001:80", "ranges of different lengths"),
        ("7001-7000:80-81", "'7001-7000' is no range"),
        ("0-2:80-82", "'0-2' is no range"),
        ("1-60000", "more than 1000 ports"),
        ("-1:80", "'-1' is no port"),
        ("²:80", "is no port"),
    ],
)
def test_what_it_may_not_say(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ports(text)
    assert why in caught.value.what
    assert repr(text) in caught.value.what
    assert "8080:80" in caught.value.next_step


def test_it_is_shown_as_docker_shows_it() -> None:
    assert str(Port(80, 8080)) == "127.0.0.1:8080->80/tcp"
    assert str(Port(53, 5353, "::1", "udp")) == "[::1]:5353->53/udp"


def test_a_random_port_is_reported_and_listens_on_loopback_only() -> None:
    ((port, sock),) = open_ports([Port(80)])
    with sock:
        assert port.host > 1023
        assert sock.getsockname() == ("127.0.0.1", port.host)
        socket.create_connection(("127.0.0.1", port.host), 5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port.host), 5)


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", 1), ("udp", 2)])
def test_a_port_in_use_is_named(protocol: str, kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(SandboxError) as caught:
            open_ports([Port(8000), Port(80, number, protocol=protocol)])
    assert f"port 127.0.0.1:{number}/{protocol} of the host is already in use" in caught.value.what
    assert "-p 80 for any free one" in caught.value.next_step


def test_a_port_published_twice_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    with pytest.raises(SandboxError, match="published twice"):
        open_ports([Port(80, number), Port(81, number)])


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(SandboxError, match=r"203\.0\.113\.9:0/tcp: no address of this host"):
        open_ports([Port(80, 0, "203.0.113.9")])


def test_tcp_and_udp_of_one_number_do_not_clash() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    opened = open_ports([Port(53, number), Port(53, number, protocol="udp")])
    assert [port.host for port, _ in opened] == [number, number]
    for _, sock in opened:
        sock.close()


def test_a_low_port_needs_root() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    if lowest < 2:
        pytest.skip("every port is open to ordinary users here")
    import os

    child = os.fork() if os.geteuid() == 0 else None
    if child is None:
        with pytest.raises(SandboxError, match="ordinary users") as caught:
            open_ports([Port(80, lowest - 1)])
        assert f"ip_unprivileged_port_start={lowest - 1}" in caught.value.next_step
        return
    if child == 0:  # as nobody
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            open_ports([Port(80, lowest - 1)])
        except SandboxError as error:
            named = f"ip_unprivileged_port_start={lowest - 1}" in error.next_step
            status = 0 if named and "ordinary users" in error.what else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
