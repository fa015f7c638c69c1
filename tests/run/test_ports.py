"""Published ports of sandboxes that `run` started."""

from __future__ import annotations

import json
import re
import socket
import time

import pytest

from tests.run.conftest import lacking, wait_for

SERVE = "while :; do echo served | nc -l -p 8000; done"


@pytest.fixture
def serving(cli, image):
    """A sandbox that answers at its port 8000; `-p` as it is given."""
    started = []

    def start(*words):
        done = cli("run", "-d", *words, image, "sh", "-c", SERVE)
        if done.returncode == 125 and "no network for the sandbox" in done.stderr:
            lacking(done.stderr)
        assert done.returncode == 0, done.stderr
        started.append(done.stdout.strip())
        return cli.look(started[-1])

    yield start
    for identity in started:
        cli.good("rm", "-f", identity)
    cli.nothing_left(5)


def ask(address, port, seconds=10.0):
    """What a port says."""
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), 5) as client:
                client.settimeout(5)
                if data := client.recv(100):
                    return data
        except OSError:
            if time.monotonic() > until:
                raise
        assert time.monotonic() < until
        time.sleep(0.05)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_fixed_port_on_loopback_only(cli, serving):
    port = free_port()
    found = serving("-p", f"{port}:8000")
    assert found["ports"] == [f"127.0.0.1:{port}->8000/tcp"]
    assert found["network"] == "bridge"
    assert f"127.0.0.1:{port}->8000/tcp" in cli.good("ps")
    assert ask("127.0.0.1", port) == b"served\n"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((_own_address(), port), 2)


def _own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has loopback only")
        return probe.getsockname()[0]


def test_any_free_port(serving):
    found = serving("-p", "0:8000", "-p", "8000")
    ports = [int(re.fullmatch(r"127\.0\.0\.1:(\d+)->8000/tcp", p)[1]) for p in found["ports"]]
    assert len(set(ports)) == 2
    for port in ports:
        assert ask("127.0.0.1", port) == b"served\n"


def test_ipv6(serving):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    found = serving("-p", "[::1]::8000")
    port = int(re.fullmatch(r"\[::1\]:(\d+)->8000/tcp", found["ports"][0])[1])
    assert ask("::1", port) == b"served\n"


ANSWER = """
use IO::Socket::INET;
my $socket = IO::Socket::INET->new(LocalPort => 5353, Proto => "udp") or die;
while ($socket->recv(my $data, 100)) { $socket->send("answer to $data") }
"""


def test_udp(cli, debian, clean):
    done = cli("run", "-q", "-d", "-p", "0:5353/udp", debian, "perl", "-e", ANSWER)
    assert done.returncode == 0, done.stderr
    identity = done.stdout.strip()
    port = int(cli.look(identity)["ports"][0].partition("->")[0].rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)

        def answered():
            client.sendto(b"question", ("127.0.0.1", port))
            try:
                return client.recv(100) == b"answer to question"
            except OSError:
                return False

        wait_for(answered)
    cli.good("rm", "-f", identity)


def test_a_clash(cli, image, clean):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for detached in (["-d"], ["--rm"]):
            done = cli("run", *detached, "-p", f"{port}:80", image, "true")
            assert done.returncode == 125
            assert f"port 127.0.0.1:{port}/tcp of the host is already in use" in done.stderr
            assert done.stderr.count("\n") == 1


def test_without_a_network(cli, image, clean):
    assert cli.good("run", "--rm", image, "sh", "-c", "ls /sys/class/net").split() == ["lo"]


def test_json_of_ps(cli, serving):
    found = serving("-p", "8000")
    listed = json.loads(cli.good("ps", "--json"))
    assert listed["ports"] == found["ports"]
