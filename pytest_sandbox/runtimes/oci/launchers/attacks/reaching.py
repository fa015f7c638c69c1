"""Attacks by what a command is born with or can connect to: descriptors, sockets, the network."""

# pathlib would stand between an attack and its system calls.
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Final

from pytest_sandbox.runtimes.oci.launchers.attacks.calls import first
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside
from pytest_sandbox.runtimes.oci.launchers.attacks.processes import identity, read, top

_TUNNELS: Final = {
    "tunl0",
    "gre0",
    "gretap0",
    "erspan0",
    "ip_vti0",
    "ip6_vti0",
    "sit0",
    "ip6tnl0",
    "ip6gre0",
}
"""Devices that a kernel with these modules puts into every new network namespace; all are down."""
_LISTENS: Final = "0A"
_PLACES: Final = ("/run", "/var/run", "/tmp", "/dev", "/srv", "/mnt")
_ENTRIES: Final = 2000


def _descriptors(outside: Outside) -> str | None:
    """A command has 0, 1 and 2, and nothing else."""
    own = set(outside.kept)
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    numbers = {int(name) for name in os.listdir(listing)} - {listing, 0, 1, 2} - own
    os.close(listing)
    found: list[str | None] = []
    for number in sorted(numbers):
        with contextlib.suppress(OSError):
            os.fstat(number)  # that of the listing itself is closed already
            found.append(f"descriptor {number}: {os.readlink(f'/proc/self/fd/{number}')}")
    return first(found)


def _standard(_: Outside) -> str | None:
    """stdin, stdout and stderr lead to no folder, file or device of the machine."""
    found: list[str | None] = []
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            kind = os.fstat(number)
            if stat.S_ISDIR(kind.st_mode):
                if top(os.dup(number)) != identity("/"):
                    found.append(f"descriptor {number} is a folder outside")
            elif stat.S_ISREG(kind.st_mode) or stat.S_ISBLK(kind.st_mode):
                path = f"/proc/self/fd/{number}"
                os.close(os.open(path, os.O_RDWR))
                found.append(f"descriptor {number} is a file that can be opened anew")
    return first(found)


def _interfaces(_: Outside) -> str | None:
    """Without a network there is a loopback of the sandbox's own."""
    lines = read("/proc/net/dev").decode().splitlines()[2:]
    names = {line.partition(":")[0].strip() for line in lines} - _TUNNELS
    return None if names == {"lo"} else f"interfaces: {', '.join(sorted(names)) or 'none'}"


def _listeners(outside: Outside) -> str | None:
    """Nothing listens here that the sandbox has not started, and the machine's ports are far."""
    found: list[str | None] = []
    for table in ("tcp", "tcp6"):
        for line in read(f"/proc/net/{table}").decode().splitlines()[1:]:
            if line.split()[3] == _LISTENS:
                found.append(f"/proc/net/{table}: {line.split()[1]} listens")
    for port in outside.ports:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with contextlib.suppress(OSError), socket.socket(family) as one:
                one.settimeout(2)
                one.connect((address, port))
                found.append(f"the machine's port {port} answers at {address}")
    return first(found)


def _abstract(outside: Outside) -> str | None:
    """Names of sockets that are no files belong to a network namespace: this one has none."""
    found: list[str | None] = []
    for line in read("/proc/net/unix").decode(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) > 7:
            found.append(f"/proc/net/unix shows {fields[7]}")
    for name in outside.sockets:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as one:
                one.connect("\0" + name)
                found.append(f"the machine's abstract socket {name} answers")
    return first(found)


def _socket_files(_: Outside) -> str | None:
    """No socket of the machine (an engine's, an agent's) lies in the sandbox."""
    found: list[str | None] = []
    seen = 0
    for place in _PLACES:
        for folder, names, files in os.walk(place):
            seen += len(files)
            if seen > _ENTRIES:
                names.clear()
            for name in files:
                path = f"{folder}/{name}"
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        with socket.socket(socket.AF_UNIX) as one:
                            one.connect(path)
                            found.append(f"{path} answers")
    return first(found)


ATTACKS: Final = (
    Attack("descriptors", "descriptors above 2", _descriptors),
    Attack("standard-files", "stdin, stdout, stderr opened anew", _standard),
    Attack("interfaces", "network devices besides lo", _interfaces),
    Attack("loopback", "the machine's loopback", _listeners),
    Attack("abstract-sockets", "the machine's abstract sockets", _abstract),
    Attack("socket-files", "sockets of the machine in the file system", _socket_files),
)
