"""The ids that sandboxes use: which host ids stand behind 0..65535 of a sandbox.

Root takes the subordinate ids of `root` or `containers`, else a fixed block outside of every
account. An ordinary user takes its own id for root and its subordinate ids for the rest
(user_namespaces(7), newuidmap(1), subuid(5)).
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import Final, NamedTuple

from pytest_sandbox.errors import RuntimeUnavailable

BLOCK: Final = 65536
"""A sandbox has this many ids."""
_FIXED_START: Final = 0x7A000000
"""Where the search for a block of root's own begins: high above accounts and subordinate ids, and
below 2^31, which runc cannot pass.
"""


class Range(NamedTuple):
    """One line of uid_map: `inside` is the first id in the sandbox, `outside` that on the host."""

    inside: int
    outside: int
    size: int


class IdSpace(NamedTuple):
    """The ids of sandboxes. `source` says where they come from, for doctor.

    `rootless`: an ordinary user's, made with newuidmap; inside its namespace the ids are what
    sandboxes see.
    """

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]
    rootless: bool
    source: str

    @property
    def root(self) -> tuple[int, int]:
        """Host uid and gid of the sandbox's root."""
        return self.uids[0].outside, self.gids[0].outside

    @property
    def size(self) -> int:
        """Ids below this one are mapped."""
        return min(sum(r.size for r in self.uids), sum(r.size for r in self.gids))

    def key(self) -> str:
        """A short text that is the same for the same map: layers are stored for one map."""
        parts = (f"{r.inside}:{r.outside}:{r.size}" for r in (*self.uids, *self.gids))
        return ",".join(parts)


class NoIds(RuntimeUnavailable):
    """No ids for sandboxes; `problem` is the stable id of the diagnosis."""

    def __init__(self, what: str, *, problem: str, next_step: str) -> None:
        super().__init__(what, next_step=next_step)
        self.problem = problem


def subordinate(names: tuple[str, ...], path: Path) -> tuple[int, int, str] | None:
    """(first id, count, name) of the first usable entry (at least BLOCK ids) for one of `names`."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    entries = []
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        low, _, many = rest.partition(":")
        if low.isdigit() and many.isdigit():
            entries.append((name, int(low), int(many)))
    for wanted in names:
        for name, first, count in entries:
            if name == wanted and count >= BLOCK and first + BLOCK <= 1 << 31:
                return first, count, name
    return None


def find_ids(etc: Path = Path("/etc")) -> IdSpace:
    """The ids of sandboxes for this process. Raises NoIds for an ordinary user without any."""
    if os.geteuid() == 0:
        return _for_root(etc)
    return _for_user(etc)


def _for_root(etc: Path) -> IdSpace:
    names = ("root", "0", "containers")
    uids, gids = subordinate(names, etc / "subuid"), subordinate(names, etc / "subgid")
    if uids and gids:
        source = f"the entries of {uids[2]} in {etc}/subuid and subgid"
        return _block(uids[0], gids[0], source)
    start = free_block(etc)
    return _block(start, start, "a block outside of every account and subordinate range")


def _block(uid: int, gid: int, source: str) -> IdSpace:
    return IdSpace((Range(0, uid, BLOCK),), (Range(0, gid, BLOCK),), rootless=False, source=source)


def free_block(etc: Path = Path("/etc")) -> int:
    """The first block of BLOCK ids from a fixed place on that nobody has: the same every time."""
    taken: list[tuple[int, int]] = []
    for name in ("subuid", "subgid"):
        with contextlib.suppress(OSError):
            for line in (etc / name).read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.strip().split(":")
                if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
                    taken.append((int(words[1]), int(words[1]) + int(words[2])))
    for name, field in (("passwd", 2), ("passwd", 3), ("group", 2)):
        with contextlib.suppress(OSError):
            for line in (etc / name).read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.split(":")
                if len(words) > field and words[field].isdigit():
                    taken.append((int(words[field]), int(words[field]) + 1))
    start = _FIXED_START
    while clash := next((end for low, end in taken if low < start + BLOCK and end > start), 0):
        start = -(-clash // BLOCK) * BLOCK
    return start


def _for_user(etc: Path) -> IdSpace:
    uid, gid = os.geteuid(), os.getegid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    uids = subordinate((name, str(uid)), etc / "subuid")
    gids = subordinate((name, str(uid)), etc / "subgid")
    if uids is None or gids is None:
        lacking = "subuid" if uids is None else "subgid"
        msg = f"{name} has no range of {BLOCK} ids in {etc}/{lacking}"
        step = f"as root: usermod --add-sub{lacking[3]}ids START-END {name}, with 65536 unused ids"
        raise NoIds(msg, problem=f"no-{lacking}", next_step=step)
    return IdSpace(
        (Range(0, uid, 1), Range(1, uids[0], BLOCK)),
        (Range(0, gid, 1), Range(1, gids[0], BLOCK)),
        rootless=True,
        source=f"the entries of {uids[2]} in {etc}/subuid and subgid",
    )
