"""A process that makes blanks ahead for one worker, so that no start waits for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.oci.supervisor.jobs import describe, rebuild
from pytest_sandbox.runtimes.oci.launchers.direct.blank import Blank, Mould

if TYPE_CHECKING:
    from pytest_sandbox.oci.cgroups import Cgroups
    from pytest_sandbox.runtimes.oci.launchers.direct.profile import Profile

_PATIENCE: Final = 30.0
_SOON: Final = 0.001
"""Seconds: the next blank waits until the first command has begun."""
_BUSY: Final = 0.1
_STOCK: Final = 3
"""So many are kept where starts follow each other within `_BUSY` seconds, else one."""


class _How(NamedTuple):
    """What a Mould is made of."""

    profile: Profile
    cgroups: Cgroups | None
    room: str
    supervisor: int


class Maker:
    """One, as its worker sees it, for blanks of one profile."""

    def __init__(
        self, profile: Profile, cgroups: Cgroups | None, room: str, supervisor: int
    ) -> None:
        """See Mould. Raises OSError."""
        self.profile = profile
        self._cgroups = cgroups
        self._asked = self._took = 0
        self._last = 0.0
        self._end, theirs = messages.pair()
        with theirs:
            # The supervisor's child, as the blanks are.
            if linux.clone3(linux.CLONE_PARENT) == 0:
                _serve(theirs, _How(profile, cgroups, room, supervisor))

    def take(self) -> Blank:
        """The next one. Raises what Mould.blank raises; BrokenPipeError where the maker is gone."""
        if not select.select([self._end], [], [], 0)[0]:
            self._tell(1, hurry=True)
        self._end.settimeout(_PATIENCE)
        received = messages.receive(self._end)
        if received is None:
            raise BrokenPipeError
        self._asked -= 1
        told, descriptors = received
        if "failed" in told:
            raise rebuild(told["failed"], "maker:make")
        self._took += 1
        paths = None
        if told["group"] and self._cgroups is not None:
            paths = self._cgroups.paths(told["group"])
        return Blank(self.profile, told["pid"], messages.end_of(descriptors[0]), paths)

    def prepare(self) -> None:
        """Have it make more in a moment."""
        now = time.monotonic()
        self._tell(_STOCK if now - self._last < _BUSY else 1)
        self._last = now

    def _tell(self, least: int, *, hurry: bool = False) -> None:
        """What was taken, and how many are to be there."""
        more = max(least - self._asked, 0)
        messages.send(self._end, {"took": self._took, "more": more, "hurry": hurry})
        self._asked += more
        self._took = 0

    def close(self) -> None:
        """End it, and wait until it has put away what it holds."""
        with self._end, contextlib.suppress(OSError):
            self._tell(0)
            self._end.shutdown(socket.SHUT_WR)
            self._end.settimeout(_PATIENCE)
            while (received := messages.receive(self._end)) is not None:
                for descriptor in received[1]:
                    os.close(descriptor)


def _serve(channel: socket.socket, how: _How) -> NoReturn:
    """In the maker. It never returns."""
    given: deque[Blank] = deque()
    wanted = 0
    mould: list[Mould] = []
    try:
        linux.close_all_but([channel.fileno(), how.supervisor])
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            wait = _SOON if wanted else None
            if select.select([channel], [], [], wait)[0]:
                received = messages.receive(channel)
                if received is None:
                    break
                told = received[0]
                wanted += told["more"]
                for _ in range(told["took"]):
                    given.popleft().end.close()
                if not told["hurry"]:
                    continue
            if wanted:
                wanted -= 1
                _make(channel, how, mould, given)
    except OSError:
        pass  # the worker is gone
    finally:
        with contextlib.suppress(Exception):
            for blank in given:
                blank.throw_away()
        os._exit(0)


def _make(channel: socket.socket, how: _How, mould: list[Mould], given: deque[Blank]) -> None:
    try:
        if not mould:
            mould.append(Mould(*how))
        blank = mould[0].blank()
    except Exception as error:
        messages.send(channel, {"failed": describe(error)})
        return
    given.append(blank)
    told: dict[str, Any] = {"pid": blank.pid, "group": blank.group}
    messages.send(channel, told, [blank.end.fileno()])
