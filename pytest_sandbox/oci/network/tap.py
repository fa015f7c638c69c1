"""The sandbox's network card: a tap device with its address, its routes and a filter.

It is made before a stack opens it, and stays in the namespace (TUNSETPERSIST). The filter sits in
the kernel between the device and the stack (TUNATTACHFILTER): it holds for raw packets too,
which a sandbox with CAP_NET_RAW may send. slirp4netns 1.2 needs it: with --disable-host-loopback
it still connects raw packets for 127.0.0.1 and 0.0.0.0 to the host's own loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from pytest_sandbox.errors import RuntimeUnavailable

NAME: Final = "tap0"
ADDRESS: Final = "10.0.2.100"
GATEWAY: Final = "10.0.2.2"
RESOLVER: Final = "10.0.2.3"
"""Where the stack answers DNS, and nothing else."""
NETWORK: Final = "10.0.2.0"
MTU: Final = 65520
TUN: Final = Path("/dev/net/tun")
DEVICE: Final = os.makedev(10, 200)

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNATTACHFILTER: Final = 0x401054D5
_IFF_TAP_NO_PI: Final = 0x0002 | 0x1000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFMTU: Final = 0x8922
_IFF_UP: Final = 1
_IFF_RUNNING: Final = 0x40

_LD_W: Final = 0x20
_LD_H: Final = 0x28
_LD_B: Final = 0x30
_LDX_IHL: Final = 0xB1
_LD_H_X: Final = 0x48
_AND: Final = 0x54
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET: Final = 0x06

_RTM_NEWLINK: Final = 16
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_RTN_UNICAST: Final = 1
_RTN_UNREACHABLE: Final = 7


class NoTun(RuntimeUnavailable):
    """/dev/net/tun cannot be used; `problem` is the stable id of the diagnosis."""

    def __init__(self, what: str, *, problem: str, next_step: str) -> None:
        super().__init__(what, next_step=next_step)
        self.problem = problem


def make_tap() -> socket.socket:
    """Make the device in the network namespace of this process and configure it.

    Returns a socket of that namespace: `has_carrier` asks it whether a stack has opened the device.
    Needs CAP_NET_ADMIN over the namespace. Raises NoTun and OSError.
    """
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _device()
    tap = socket.if_nametoindex(NAME)
    fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", NAME.encode(), MTU))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        with contextlib.suppress(OSError):  # a kernel without IPv6
            _tell(netlink, _RTM_NEWLINK, _no_link_local(tap))
        _tell(netlink, _RTM_NEWADDR, _address(tap))
        _up(control, "lo")
        _up(control, NAME)
        # No refusal comes back from where the filter drops packets: these routes give one.
        _tell(netlink, _RTM_NEWROUTE, _route("169.254.0.0", 16, kind=_RTN_UNREACHABLE))
        _tell(netlink, _RTM_NEWROUTE, _route(NETWORK, 24, kind=_RTN_UNREACHABLE))
        _tell(netlink, _RTM_NEWROUTE, _route(RESOLVER, 32, tap))
        _tell(netlink, _RTM_NEWROUTE, _route("0.0.0.0", 0, tap, GATEWAY))
    for name in ("all", NAME):  # else what the gateway itself says is dropped on some hosts
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0", encoding="ascii")
    return control


def has_carrier(control: socket.socket) -> bool:
    """Whether a stack has opened the device."""
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s16x", NAME.encode()))
    return bool(struct.unpack_from("16xH", answer)[0] & _IFF_RUNNING)


def open_tun() -> int:
    """A descriptor of /dev/net/tun. Raises NoTun."""
    try:
        return os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            what = f"{TUN} cannot be opened ({error.strerror}): a sandbox's network needs it"
            step = f"as root: chmod 0666 {TUN} (in a container: --device {TUN})"
            raise NoTun(what, problem="tun-no-access", next_step=step) from error
        what = f"{TUN} is missing ({error.strerror}): a sandbox's network needs it"
        step = f"as root: modprobe tun (in a container: --device {TUN})"
        raise NoTun(what, problem="tun-missing", next_step=step) from error


def _device() -> None:
    tun = open_tun()
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", NAME.encode(), _IFF_TAP_NO_PI))
        fcntl.ioctl(tun, _TUNSETPERSIST, 1)
    finally:
        os.close(tun)


def attach_filter(tun: int) -> None:
    """Put the filter on a stack's own descriptor of the device. Raises OSError.

    It is lost with the descriptor: the kernel cannot hand it to the next one that opens the device
    (it would read the program from that process's memory).
    """
    program = packet_filter()
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    fcntl.ioctl(tun, _TUNATTACHFILTER, head)


def packet_filter() -> bytes:
    """The filter, as classic BPF: what of the sandbox's frames the stack sees.

    ARP; IPv4 from the sandbox's own address, not to 0/8, 127/8, 169.254/16, multicast, 240/4,
    broadcast or the stack's own network, but DNS to the resolver. No fragments to the resolver:
    the second has no port.
    """

    def number(address: str) -> int:
        return int.from_bytes(socket.inet_aton(address), "big")

    lines: list[tuple[str, int, int, str, str]] = [
        ("", _LD_H, 12, "", ""),
        ("", _JEQ, 0x0806, "accept", ""),
        ("", _JEQ, 0x0800, "", "drop"),
        ("", _LD_W, 26, "", ""),
        ("", _JEQ, number(ADDRESS), "", "drop"),
        ("", _LD_B, 30, "", ""),
        ("", _JEQ, 0, "drop", ""),
        ("", _JEQ, 127, "drop", ""),
        ("", _JGE, 224, "drop", ""),
        ("", _LD_H, 30, "", ""),
        ("", _JEQ, 0xA9FE, "drop", ""),
        ("", _LD_W, 30, "", ""),
        ("", _JEQ, number(RESOLVER), "resolver", ""),
        ("", _AND, 0xFFFFFF00, "", ""),
        ("", _JEQ, number(NETWORK), "drop", "accept"),
        ("resolver", _LD_H, 20, "", ""),
        ("", _JSET, 0x3FFF, "drop", ""),
        ("", _LD_B, 23, "", ""),
        ("", _JEQ, socket.IPPROTO_TCP, "port", ""),
        ("", _JEQ, socket.IPPROTO_UDP, "", "drop"),
        ("port", _LDX_IHL, 14, "", ""),
        ("", _LD_H_X, 16, "", ""),
        ("", _JEQ, 53, "accept", "drop"),
        ("drop", _RET, 0, "", ""),
        ("accept", _RET, 0xFFFFFFFF, "", ""),
    ]
    places = {label: place for place, (label, *_) in enumerate(lines) if label}

    def jump(place: int, label: str) -> int:
        return places[label] - place - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", code, jump(place, true), jump(place, false), value)
        for place, (_, code, value, true, false) in enumerate(lines)
    )


# --- rtnetlink(7) ----------------------------------------------------------------------------


def _up(control: socket.socket, name: str) -> None:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s16x", name.encode()))
    flags = struct.unpack_from("16xH", answer)[0] | _IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags))


def _attribute(kind: int, value: bytes) -> bytes:
    text = struct.pack("=HH", 4 + len(value), kind) + value
    return text + bytes(-len(text) % 4)


def _no_link_local(index: int) -> bytes:
    """IFLA_AF_SPEC, AF_INET6, IFLA_INET6_ADDR_GEN_MODE: none."""
    mode = _attribute(8, b"\x01")
    head = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    return head + _attribute(26, _attribute(socket.AF_INET6, mode))


def _address(index: int) -> bytes:
    packed = socket.inet_aton(ADDRESS)
    head = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index)
    return head + _attribute(1, packed) + _attribute(2, packed)


def _route(
    address: str, bits: int, index: int = 0, gateway: str = "", *, kind: int = _RTN_UNICAST
) -> bytes:
    table, static, onlink = 254, 4, 4
    scope = 0 if gateway or not index else 253
    flags = onlink if gateway else 0
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, bits, 0, 0, table, static, scope, kind, flags)
    if bits:
        head += _attribute(1, socket.inet_aton(address))
    if index:
        head += _attribute(4, struct.pack("=I", index))
    if gateway:
        head += _attribute(5, socket.inet_aton(gateway))
    return head


def _tell(netlink: socket.socket, kind: int, body: bytes) -> None:
    """One request with NLM_F_REQUEST, ACK, CREATE and EXCL, and its answer. Raises OSError."""
    flags = 0x1 | 0x4 | (0 if kind == _RTM_NEWLINK else 0x400 | 0x200)
    netlink.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    answer = netlink.recv(4096)
    code = -struct.unpack_from("=i", answer, 16)[0]
    if code and code != errno.EEXIST:
        raise OSError(code, os.strerror(code), "rtnetlink")
