"""A program for images without a shell: it reads its stdin to the end, then ends.

That is all a sandbox's main process must do when every command is a real exec. It is a static ELF
file of some hundred bytes, written out here: such an image has nothing else that would wait.
"""

from __future__ import annotations

import struct
from typing import Final

NAME: Final = "hold"
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56

# read(0, sp - 16, 8) until it gives 0 or less; exit(0)
_CODE: Final = {
    "amd64": (
        62,
        bytes.fromhex("31c0 31ff 488d7424f0 ba08000000 0f05 85c0 7fec 6a3c 58 31ff 0f05"),
    ),
    "arm64": (
        183,
        struct.pack(
            "<10I",
            0xD2800000,  # mov x0, #0
            0xD10043E1,  # sub x1, sp, #16
            0xD2800102,  # mov x2, #8
            0xD28007E8,  # mov x8, #63 (read)
            0xD4000001,  # svc #0
            0xF100001F,  # cmp x0, #0
            0x54FFFF4C,  # b.gt 0
            0xD2800000,  # mov x0, #0
            0xD2800BA8,  # mov x8, #93 (exit)
            0xD4000001,  # svc #0
        ),
    ),
}


def program(arch: str) -> bytes:
    """The ELF file for an architecture. Raises KeyError for one that is unknown."""
    machine, code = _CODE[arch]
    size = _HEADERS + len(code)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code
