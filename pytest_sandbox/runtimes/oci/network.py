"""The private network of a sandbox, for a launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.oci.network.bridge import Attached


def attach(pid: int, ports: Sequence[str]) -> Attached:
    """Attach the namespace of `pid` outward, with published ports. Raises RuntimeUnavailable."""
    from pytest_sandbox.oci.network.bridge import attach as attach_bridge
    from pytest_sandbox.oci.network.ports import parse_ports

    wanted = [port for text in ports for port in parse_ports(text)]
    return attach_bridge(pid, ports=wanted)
