"""The filter on the sandbox's packets, run by the kernel on frames through a pair of sockets."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

import pytest

from pytest_sandbox.oci.network.tap import packet_filter

SO_ATTACH_FILTER = 26


def frame(
    target: str,
    *,
    source: str = "10.0.2.100",
    protocol: int = 6,
    port: int = 80,
    fragment: int = 0,
    options: int = 0,
    ethertype: int = 0x0800,
) -> bytes:
    """An Ethernet frame with IPv4 and the first bytes of TCP or UDP."""
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | (5 + options),
        0,
        40 + 4 * options,
        1,
        fragment,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(target),
    )
    head += b"\x01" * 4 * options
    return bytes(12) + struct.pack("!H", ethertype) + head + struct.pack("!HH16x", 4000, port)


@pytest.fixture
def passes() -> Any:
    program = packet_filter()
    code = ctypes.create_string_buffer(program, len(program))
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    head = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    its.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)
    ours.setblocking(False)
    its.setblocking(False)

    def check(data: bytes) -> bool:
        try:
            ours.send(data)
            return its.recv(4096) == data
        except (BlockingIOError, PermissionError):
            return False

    with ours, its:
        yield check


@pytest.mark.parametrize(
    "data",
    [
        frame("192.0.2.7"),
        frame("192.0.2.7", protocol=17),
        frame("192.0.2.7", protocol=1),
        frame("192.0.2.7", fragment=0x2001),
        frame("10.0.3.1"),
        frame("10.1.2.3"),
        frame("126.255.255.255"),
        frame("128.0.0.1"),
        frame("169.253.1.1"),
        frame("169.255.1.1"),
        frame("223.255.255.255"),
        frame("10.0.2.3", port=53),
        frame("10.0.2.3", protocol=17, port=53, fragment=0x4000),
        frame("10.0.2.3", protocol=17, port=53, options=2),
        bytes(12) + b"\x08\x06" + bytes(28),
    ],
)
def test_let_through(passes: Any, data: bytes) -> None:
    assert passes(data)


@pytest.mark.parametrize(
    "data",
    [
        frame("127.0.0.1"),
        frame("127.255.255.254", protocol=17),
        frame("0.0.0.0"),
        frame("0.1.2.3"),
        frame("169.254.169.254"),
        frame("169.254.0.1", protocol=17),
        frame("224.0.0.1"),
        frame("240.0.0.1"),
        frame("255.255.255.255", protocol=17),
        frame("10.0.2.2"),
        frame("10.0.2.2", protocol=17, port=53),
        frame("10.0.2.3", port=80),
        frame("10.0.2.3", protocol=1),
        frame("10.0.2.3", protocol=17, port=53, fragment=0x2000),
        frame("10.0.2.3", protocol=17, port=53, fragment=0x0001),
        frame("10.0.2.3", port=80, options=10),
        frame("10.0.2.100"),
        frame("10.0.2.255"),
        frame("192.0.2.7", source="127.0.0.1"),
        frame("192.0.2.7", source="10.0.2.101"),
        frame("192.0.2.7", ethertype=0x86DD),
        frame("192.0.2.7", ethertype=0x8100),
        frame("192.0.2.7")[:20],
        b"",
    ],
)
def test_dropped(passes: Any, data: bytes) -> None:
    assert not passes(data)
