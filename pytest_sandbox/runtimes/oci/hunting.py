"""The processes of a sandbox as its process 1 sees them, where no cgroup of its own holds those of
a command together.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING, Final, TypeVar

from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes import processes
from pytest_sandbox.runtimes.oci.launchers.direct import hands
from pytest_sandbox.runtimes.oci.launchers.direct.program import BULK
from pytest_sandbox.runtimes.oci.launchers.direct.staging import HERE
from pytest_sandbox.runtimes.oci.launchers.direct.tables import Table, given

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Iterator, Sequence

_T = TypeVar("_T")
_PIECE: Final = 32 << 10
_LINE: Final = 512
"""More than a line of /proc/PID/stat has."""
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EBADF)


class InsideSight:
    """See Sight. Raises OSError where process 1 is gone."""

    def __init__(self, control: socket.socket, bulk: threading.Lock) -> None:
        """`bulk` is held while something lies at BULK."""
        self._control = control
        self._bulk = bulk

    def wait(self) -> None:
        time.sleep(0.001)

    def table(self) -> dict[int, processes.Process]:
        names = [name for name in self._names() if name.isdigit()]
        lines = [line for part in _parts(names) for line in self._lines(part)]
        return processes.parse_table(lines)

    def signal(self, name: str, pids: Sequence[int]) -> None:
        number = signal.Signals[f"SIG{name}"]
        for part in _parts(list(pids)):
            table = Table()
            for pid in part:
                table.call("kill", pid, number, may=(errno.ESRCH,))
            hands.run(self._control, table)

    def _names(self) -> list[str]:
        """What is in /proc."""
        table = Table()
        table.call("openat", HERE, b"/proc", _FLAGS | os.O_DIRECTORY)
        number = hands.run(self._control, table)[0]
        assert number is not None
        found: list[str] = []
        while True:
            table = Table()
            size = table.call("getdents64", number, BULK, _PIECE)
            table.call("sendto", given(1), BULK, size, 0, 0, 0)
            data = self._read(table)
            if not data:
                break
            found += _entries(data)
        table = Table()
        table.call("close", number)
        hands.run(self._control, table)
        return found

    def _lines(self, names: Sequence[str]) -> Iterator[str]:
        table = Table()
        for index, name in enumerate(names):
            file = table.call("openat", HERE, f"/proc/{name}/stat".encode(), _FLAGS, may=_GONE)
            table.call("read", file, BULK + index * _LINE, _LINE, may=_GONE)
            table.call("close", file, may=_GONE)
        table.call("sendto", given(1), BULK, len(names) * _LINE, 0, 0, 0)
        results: list[int | None] = []
        data = self._read(table, results)
        for index in range(len(names)):
            size = results[3 * index + 1] or 0
            if size > 0:
                begin = index * _LINE
                yield data[begin : begin + size].decode("utf-8", "replace")

    def _read(self, table: Table, results: list[int | None] | None = None) -> bytes:
        """What a table sends through the descriptor that comes with it."""
        mine, theirs = messages.pair()
        with mine:
            with theirs, self._bulk:
                found = hands.run(self._control, table, [theirs.fileno()])
            if results is not None:
                results[:] = found
            return mine.recv(_PIECE * 2)


def _parts(items: list[_T]) -> Iterator[list[_T]]:
    for begin in range(0, len(items), 64):
        yield items[begin : begin + 64]


def _entries(data: bytes) -> Iterator[str]:
    """The names of struct linux_dirent64 (getdents64(2))."""
    begin = 0
    while begin < len(data):
        length = int.from_bytes(data[begin + 16 : begin + 18], "little")
        yield data[begin + 19 : begin + length].split(b"\0", 1)[0].decode("utf-8", "replace")
        begin += length
