"""What makes a start quick: no engine work that a sandbox does not need, no start that must fail.

Without a network, Docker still sets up networking: a hook that runs the engine's own binary again,
half of the time of a start. `NetworkDisabled` leaves it out; the OCI runtime makes the same empty
network namespace, loopback up. Only the hosts file is missing then, and comes from here.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any, Final

_HOSTS: Final = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_HOSTS_PATH: Final = "/etc/hosts"
_SYS_RESOURCE: Final = 1 << 24


def leave_networking_out(settings: dict[str, Any], folder: Path | None) -> None:
    """Where a container's settings ask for no network, spare the engine its set-up.

    `folder` is the sandbox's own on the host, for its hosts file; without one the engine must see
    to that, and nothing changes.
    """
    host = settings["HostConfig"]
    targets = {mount["Target"] for mount in host["Mounts"]} | set(host["Tmpfs"])
    if folder is None or host["NetworkMode"] != "none" or targets & {_HOSTS_PATH, "/etc"}:
        return
    file = folder / "hosts"
    file.write_text(_HOSTS, encoding="ascii")
    file.chmod(0o644)
    settings["NetworkDisabled"] = True
    mount = {"Type": "bind", "Source": str(file), "Target": _HOSTS_PATH, "ReadOnly": False}
    host["Mounts"] = [*host["Mounts"], mount]


def bound(endpoint: str, row: str) -> int | None:
    """The most that the engine behind a local socket can give, None if it may give any.

    `row` is one of /proc/PID/limits, like `Max open files`. An engine without CAP_SYS_RESOURCE
    cannot go above its own hard limit, and says so only when a start fails.
    """
    if not endpoint.startswith("unix://"):
        return None
    size = struct.calcsize("3i")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(2.0)
            peer.connect(endpoint.removeprefix("unix://"))
            found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        process = Path("/proc") / str(struct.unpack("3i", found)[0])
        status = (process / "status").read_text(encoding="ascii", errors="replace")
        limits = (process / "limits").read_text(encoding="ascii", errors="replace")
        caps = next(line for line in status.splitlines() if line.startswith("CapEff:"))
        if int(caps.split()[1], 16) & _SYS_RESOURCE:
            return None
        found_row = next(line for line in limits.splitlines() if line.startswith(row))
        return int(found_row.removeprefix(row).split()[1])
    except (OSError, ValueError, StopIteration, IndexError, struct.error):
        return None
