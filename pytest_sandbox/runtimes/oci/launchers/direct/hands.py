"""The other end of process 1's channel: tables go to it, answers come back."""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.launchers.direct.program import BULK, CHANNEL, MOST_GIVEN
from pytest_sandbox.runtimes.oci.launchers.direct.tables import Table, given

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATIENCE: Final = 30.0


def send(end: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    """One packet. Raises OSError where process 1 is gone, or for too many descriptors."""
    if len(descriptors) > MOST_GIVEN:
        raise OSError(errno.E2BIG, f"more than {MOST_GIVEN} descriptors at once")
    ancillary = []
    if descriptors:
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    end.sendmsg([message], ancillary, socket.MSG_NOSIGNAL)


def lay_bulk(end: socket.socket, table: Table) -> None:
    """Have what a table points to lie where it has to, if it is too long for a message."""
    if table.bulk:
        with os.fdopen(os.memfd_create("sandbox-table"), "w+b", buffering=0) as file:
            file.write(table.bulk)
            first = Table()
            first.call("pread64", given(1), BULK, len(table.bulk), 0)
            run(end, first, [file.fileno()])


def run(
    end: socket.socket,
    table: Table,
    descriptors: Sequence[int] = (),
    patience: float = _PATIENCE,
) -> list[int | None]:
    """Have it make the calls of a table, from whatever thread; `descriptors` are number 1 and so on
    of what comes with it. Raises Failed; OSError where process 1 is gone, TimeoutError where it
    does not answer in so many seconds.
    """
    mine, theirs = messages.pair()
    with mine:
        with theirs:
            send(end, table.message(~0), [theirs.fileno(), *descriptors])
        return answer(mine, table, patience)


def tell(end: socket.socket, table: Table, descriptors: Sequence[int] = ()) -> list[int | None]:
    """The same on the channel itself, while nobody else uses it; `descriptors` begin with 0."""
    send(end, table.message(CHANNEL), descriptors)
    return answer(end, table)


def answer(end: socket.socket, table: Table, patience: float = _PATIENCE) -> list[int | None]:
    """Wait for the answer to a table that was sent. Raises as `run` does."""
    return table.read(receive(end, table, patience))


def receive(end: socket.socket, table: Table, patience: float = _PATIENCE) -> bytes:
    """The same, whatever it says."""
    end.settimeout(patience)
    told = end.recv(8 * len(table.calls) + 1)
    if not told:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return told
