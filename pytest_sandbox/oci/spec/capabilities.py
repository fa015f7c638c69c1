"""Capabilities: Docker's 14 for root, none in force for anybody else."""

from __future__ import annotations

from typing import Final

DEFAULT: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)


def capabilities(uid: int, bounding: tuple[str, ...] = DEFAULT) -> dict[str, list[str]]:
    """`process.capabilities`. A user other than root keeps the bounding set only, so that setuid
    programs still work; nothing is inheritable or ambient.
    """
    held = sorted(bounding) if uid == 0 else []
    return {
        "bounding": sorted(bounding),
        "effective": held,
        "permitted": list(held),
        "inheritable": [],
        "ambient": [],
    }
