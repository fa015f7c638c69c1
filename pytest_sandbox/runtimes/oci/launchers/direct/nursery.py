"""A process that does nothing but clone itself: blanks share its memory.

A worker's clones would share the worker's, which goes on writing to it: each page that it writes
leaves the old one to the clone alone. Of a nursery, which writes next to nothing, they stay shared.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Live = Callable[[list[int], int], NoReturn]

_MOST: Final = 16


class Nursery:
    """One, for clones of one kind: `ready` is called in it once, and gives what a clone does with
    the descriptors and the group that it gets; `flags` are those of clone3(2). It and its clones
    are children of this process's parent.
    """

    def __init__(
        self, key: str, ready: Callable[[], Live], flags: int, kept: Sequence[int]
    ) -> None:
        """`kept` are descriptors that it keeps open, for its clones. Raises OSError."""
        self.key = key
        self._end, theirs = messages.pair()
        try:
            if linux.clone3(linux.CLONE_PARENT) == 0:
                _serve(theirs, ready, flags | linux.CLONE_PARENT, kept)
        finally:
            theirs.close()

    def clone(self, descriptors: list[int], group: int) -> int:
        """The pid of a new clone, in the cgroup of a v2 tree whose folder is the descriptor `group`
        (-1: in this process's). Raises OSError.
        """
        given = descriptors if group < 0 else [*descriptors, group]
        socket.send_fds(self._end, [b"here" if group < 0 else b"into"], given)
        told = int(self._end.recv(32) or b"-104")  # ECONNRESET: it is gone
        if told < 0:
            raise OSError(-told, os.strerror(-told))
        return told

    def close(self) -> None:
        """End it; its clones live on."""
        self._end.close()


def _serve(
    end: socket.socket, ready: Callable[[], Live], flags: int, kept: Sequence[int]
) -> NoReturn:
    """In the nursery. It never returns."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        gc.disable()  # a collection would write to every page
        signal.set_wakeup_fd(-1)
        # What was ignored or blocked when pytest was started is inherited to here: no command is
        # to have it. (Python itself ignores SIGPIPE.)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        linux.close_all_but([end.fileno(), *kept])
        live = ready()
        while True:
            data, descriptors, _, _ = socket.recv_fds(end, 16, _MOST, socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            group = descriptors[-1] if data == b"into" else -1
            into = 0 if group < 0 else linux.CLONE_INTO_CGROUP
            try:
                pid = linux.clone3(flags | into, cgroup=group)
            except OSError as wrong:
                pid = -(wrong.errno or 1)
            if pid == 0:
                live(descriptors if group < 0 else descriptors[:-1], group)
            for descriptor in descriptors:
                os.close(descriptor)
            end.send(b"%d" % pid)
    finally:
        os._exit(0)
