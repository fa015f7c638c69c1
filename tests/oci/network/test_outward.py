"""What a sandbox with --network=bridge reaches of the host: its network, never its loopback."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

import pytest

from tests.oci.network.conftest import attached

RAW = """
import socket, struct, time
gateway = None
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
card.bind(("tap0", 3))
card.settimeout(3)
mac = card.getsockname()[4]
ask = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + mac + socket.inet_aton("10.0.2.100")
card.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + ask + bytes(6) + socket.inet_aton("10.0.2.2"))
while gateway is None:
    frame = card.recv(4096)
    if frame[12:14] == b"\\x08\\x06" and frame[20:22] == b"\\0\\x02":
        gateway = frame[22:28]
def csum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
def send(target, protocol, body, place):
    source, target = socket.inet_aton("10.0.2.100"), socket.inet_aton(target)
    whole = source + target + struct.pack("!BBH", 0, protocol, len(body)) + body
    body = body[:place] + struct.pack("!H", csum(whole)) + body[place + 2:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    head = head[:10] + struct.pack("!H", csum(head + source + target)) + source + target
    # PACKET_QDISC_BYPASS: past everything that sits before the device
    card.setsockopt(263, 20, 1)
    try:
        card.send(gateway + mac + b"\\x08\\0" + head + body)
    except OSError:
        pass  # dropped by the filter
for number, (target, port) in enumerate(TARGETS):
    syn = struct.pack("!HHIIBBHHH", 40000 + number, port, 1, 0, 0x50, 2, 65000, 0, 0)
    send(target, 6, syn, 16)
    text = target.encode()
    send(target, 17, struct.pack("!HHHH", 41000 + number, port, 8 + len(text), 0) + text, 6)
    time.sleep(0.05)
print("sent")
"""


class Listener:
    """A TCP and a UDP service of the host on one address; keeps what came."""

    def __init__(self, address, port=0):
        self.tcp = socket.create_server((address, port))
        self.address, self.port = self.tcp.getsockname()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((self.address, self.port))
        self.came = []
        for work in (self._accept, self._receive):
            threading.Thread(target=work, daemon=True).start()

    def _accept(self):
        while True:
            try:
                conn, _ = self.tcp.accept()
            except OSError:
                return
            self.came.append("tcp")
            with conn:
                conn.settimeout(5)
                try:
                    while data := conn.recv(65536):
                        conn.sendall(data.upper())
                except OSError:
                    pass

    def _receive(self):
        while True:
            try:
                data, source = self.udp.recvfrom(65536)
            except OSError:
                return
            if not data:
                return
            self.came.append("udp")
            self.udp.sendto(data.upper(), source)

    def close(self):
        self.tcp.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.address, self.port))
        time.sleep(0.05)
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def outside(host_address):
    listener = Listener(host_address)
    yield listener
    listener.close()


def test_tcp_and_udp_reach_the_network(box, outside):
    text = box.run(f"""
import socket
with socket.create_connection(({outside.address!r}, {outside.port}), 10) as sock:
    sent = b"abc" * 500_000
    import threading
    threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR))).start()
    got = b""
    while data := sock.recv(1 << 20):
        got += data
    print("tcp", got == sent.upper())
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.sendto(b"x" * 1200, ({outside.address!r}, {outside.port}))
print("udp", sock.recv(4096) == b"X" * 1200)
""")
    assert text == "tcp True\nudp True\n"


def test_it_is_ready_when_it_says_so_and_quickly(box, outside):
    assert box.told["seconds"] < 3
    assert box.told["stack"] in {"slirp4netns", "pasta"}
    assert box.told["address"] == "10.0.2.100"
    assert box.told["notes"] == []


def test_nothing_of_it_is_root_of_the_host_or_can_do_much(box):
    assert len(box.told["pids"]) == 2
    for pid in box.told["pids"]:
        with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
            status = dict(line.split(":", 1) for line in file.read().splitlines())
        assert status["Uid"].split()[0] != "0"
        # CAP_NET_BIND_SERVICE (slirp4netns) and CAP_SYS_ADMIN over its own namespaces (pasta)
        allowed = 1 << 10 | (1 << 21 if box.told["stack"] == "pasta" else 0)
        capabilities = int(status["CapEff"], 16)
        assert capabilities & ~allowed == 0
        assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    keeper = box.told["pids"][0]
    with open(f"/proc/{keeper}/status") as file:  # noqa: PTH123
        assert "CapEff:\t0000000000000000\n" in file.read()


def test_the_hosts_loopback_is_out_of_reach(box):
    own = Listener("127.0.0.1")
    try:
        text = box.run(f"""
import socket, errno
for target in ("10.0.2.2", "10.0.2.3", "10.0.2.15", "169.254.169.254", "169.254.1.2",
               "127.0.0.1", "0.0.0.0"):
    try:
        socket.create_connection((target, {own.port}), 1).close()
        print(target, "reached")
    except OSError as error:
        pass
for target in ("fd00::2", "fe80::2%tap0", "fe80::1%tap0", "::ffff:127.0.0.1", "::1",
               "fd00::3"):
    try:
        socket.create_connection((target, {own.port}), 1).close()
        print(target, "reached")
    except OSError:
        pass
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for target in ("10.0.2.2", "10.0.2.3", "10.0.2.255", "255.255.255.255", "169.254.1.1"):
    try:
        sock.sendto(b"x", (target, {own.port}))
    except OSError:
        pass
print("done")
""")
        time.sleep(0.2)
        assert text == "done\n"
        assert own.came == []
    finally:
        own.close()


def test_metadata_and_the_gateway_are_refused_at_once(box):
    text = box.run("""
import socket, time
begun = time.monotonic()
for target in ("169.254.169.254", "10.0.2.2", "10.0.2.77"):
    try:
        socket.create_connection((target, 80), 20)
    except OSError as error:
        print(error.strerror)
print(time.monotonic() - begun < 2)
""")
    assert text == "No route to host\n" * 3 + "True\n"


def test_raw_packets_do_not_reach_it_either(box, outside):
    """slirp4netns with --disable-host-loopback connects those for 127.0.0.1 and 0.0.0.0."""
    own = Listener("127.0.0.1", outside.port)
    try:
        near = ["127.0.0.1", "127.0.0.53", "0.0.0.0", "0.0.0.1", "10.0.2.2", "10.0.2.3"]
        near += ["10.0.2.15", "10.0.2.255", "255.255.255.255", "169.254.169.254", "224.0.0.1"]
        targets = [(target, own.port) for target in [*near, outside.address]]
        assert box.run(RAW.replace("TARGETS", repr(targets))) == "sent\n"
        end = time.monotonic() + 5
        while set(outside.came) != {"tcp", "udp"} and time.monotonic() < end:
            time.sleep(0.02)
        assert set(outside.came) == {"tcp", "udp"}  # so raw packets do go out
        assert own.came == []
    finally:
        own.close()


class Names:
    """A name server on a loopback address of the host, as systemd-resolved's: all is 192.0.2.33."""

    def __init__(self, address):
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.udp.bind((address, 53))
        except PermissionError:
            pytest.skip("port 53 is root's")
        self.tcp = socket.create_server((address, 53))
        self.tcp.settimeout(10)
        self.thread = threading.Thread(target=self._datagram)
        self.thread.start()
        self.other = threading.Thread(target=self._stream)
        self.other.start()

    @staticmethod
    def answer(question):
        record = struct.pack("!HHHIH", 0xC00C, 1, 1, 5, 4) + socket.inet_aton("192.0.2.33")
        return question[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + question[12:] + record

    def _datagram(self):
        self.udp.settimeout(10)
        try:
            question, source = self.udp.recvfrom(4096)
            self.udp.sendto(self.answer(question), source)
        except TimeoutError:
            pass

    def _stream(self):
        try:
            conn, _ = self.tcp.accept()
        except TimeoutError:
            return
        with conn:
            question = conn.recv(4096)[2:]
            text = self.answer(question)
            conn.sendall(struct.pack("!H", len(text)) + text)

    def close(self):
        self.thread.join()
        self.other.join()
        self.udp.close()
        self.tcp.close()


ASK = """
import socket, struct
name = b"".join(bytes([len(x)]) + x for x in (b"www", b"example", b"test")) + b"\\0"
question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.sendto(question, ("10.0.2.3", 53))
print(socket.inet_ntoa(sock.recv(4096)[-4:]))
with socket.create_connection(("10.0.2.3", 53), 5) as sock:
    sock.sendall(struct.pack("!H", len(question)) + question)
    print(socket.inet_ntoa(sock.recv(4096)[-4:]))
"""


def test_dns_works_with_a_resolver_on_the_hosts_loopback(user, stack, place):
    if os.geteuid() != 0:
        pytest.skip("a name server on port 53 needs root")
    conf = place / "resolv.conf"
    conf.touch(0o644)
    conf.write_text("nameserver 127.153.0.53\nsearch one.test two.test\noptions edns0\n")
    names = Names("127.153.0.53")
    try:
        with attached(user, stacks=[stack], resolv_conf=str(conf)) as box:
            assert box.told["resolv_conf"] == (
                "nameserver 10.0.2.3\nsearch one.test two.test\noptions edns0\n"
            )
            assert box.run(ASK) == "192.0.2.33\n192.0.2.33\n"
    finally:
        names.close()
