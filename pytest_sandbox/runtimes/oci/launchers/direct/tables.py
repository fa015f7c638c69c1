"""Tables of system calls for process 1 of a sandbox (see program): how they are written.

A table is a list of calls with their arguments, and what these point to. An argument may be what an
earlier call gave, or a descriptor that came with the table. The calls are made in their order, up
to the first one that fails, unless it may; what each gave is the answer.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_sandbox.oci.linux import CAPABILITY_VERSION
from pytest_sandbox.runtimes.oci.launchers.direct.program import (
    BUFFER,
    BULK,
    BULK_SIZE,
    GIVEN,
    MOST_ROWS,
    RESULTS,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

HEAD: Final = struct.Struct("=IIIi")
"""Number of the rows, the row to go on with after a clone, where the rows begin, who is told."""
ROW: Final = struct.Struct("=II6Q")
"""Number of the call, marks, arguments. Of the marks, the lowest six say which arguments are not
given but lie at a place (as 32 bits).
"""
MAY_FAIL: Final = 256
CLONE: Final = 512
VISIT: Final = 0x7FFFFFFF
"""No call of any kernel: see executor."""
MAIN: Final = 1024
SILENT: Final = 2048
NOT_MADE: Final = 1 << 62
"""The result of a call that was not made (or did not come back: a program runs)."""
NOBODY: Final = 1023
"""No descriptor: the answer is thrown away."""
LONGEST: Final = 160 << 10
"""Bytes of a table: it is one packet, and has to fit the buffer of a socket."""
_MASK: Final = (1 << 64) - 1


def _numbers(text: str) -> dict[str, int]:
    pairs = (word.partition("=") for word in text.split())
    return {name: int(number) for name, _, number in pairs}


_X86_64: Final = _numbers(
    "capset=126 fcntl=72 chdir=80 close=3 dup3=292 execve=59 execveat=322 fchdir=81 fstat=5 "
    "getdents64=217 ioctl=16 kill=62 madvise=28 mkdirat=258 mknodat=259 mount=165 openat=257 "
    "pipe2=293 pivot_root=155 prctl=157 pread64=17 prlimit64=302 read=0 rt_sigprocmask=14 "
    "sendto=44 setgroups=116 sethostname=170 setresgid=119 setresuid=117 setsid=112 "
    "signalfd4=289 socket=41 symlinkat=266 umask=95 umount2=166 unlinkat=263 unshare=272 "
    "utimensat=280 write=1"
)
_AARCH64: Final = _numbers(
    "capset=91 fcntl=25 chdir=49 close=57 dup3=24 execve=221 execveat=281 fchdir=50 fstat=80 "
    "getdents64=61 ioctl=29 kill=129 madvise=233 mkdirat=34 mknodat=33 mount=40 openat=56 "
    "pipe2=59 pivot_root=41 prctl=167 pread64=67 prlimit64=261 read=63 rt_sigprocmask=135 "
    "sendto=206 setgroups=159 sethostname=161 setresgid=149 setresuid=147 setsid=157 "
    "signalfd4=74 socket=198 symlinkat=36 umask=166 umount2=39 unlinkat=35 unshare=97 "
    "utimensat=88 write=64"
)
_NEW: Final = _numbers(
    "clone3=435 close_range=436 mount_setattr=442 move_mount=429 open_tree=428 openat2=437"
)
"""The same on every machine."""
NUMBERS: Final = {"x86_64": _X86_64 | _NEW, "aarch64": _AARCH64 | _NEW}.get(os.uname().machine, {})
"""The system calls of this machine."""


class At(int):
    """An argument that lies at this place."""


def given(index: int) -> At:
    """The descriptor that came with the table as number `index`."""
    return At(GIVEN + 4 * index)


class Call(NamedTuple):
    """What is known of a row: its name, for errors, and the errnos that it may fail with (None:
    with any).
    """

    name: str
    what: bytes
    may: Collection[int] | None


class Failed(OSError):
    """A call of a table failed; `row` is its number."""

    row = -1


class Table:
    """One, as it is written."""

    def __init__(self, *, bulk: bool = False) -> None:
        """`bulk`: what arguments point to does not fit into a message, and goes with `bulk` by
        itself.
        """
        self._start = BULK if bulk else BUFFER + HEAD.size
        self._data = bytearray()
        self._bulk = bulk
        self._rows: list[bytes] = []
        self.calls: list[Call] = []
        self._tail = 0
        self._good: tuple[bytes, list[int | None]] = (b"", [])

    def copy(self) -> Table:
        """The same once more, to be added to."""
        other = Table.__new__(Table)
        other._start, other._bulk, other._tail = self._start, self._bulk, self._tail
        other._good = (b"", [])
        other._data, other._rows, other.calls = self._data[:], self._rows[:], self.calls[:]
        return other

    def place(self, data: bytes) -> int:
        """Where these bytes are in the memory of process 1."""
        place = self._start + len(self._data)
        self._data += data
        self._data += bytes(-len(data) % 8)
        return place

    def texts(self, words: Iterable[bytes]) -> int:
        """An array of pointers to texts that ends with a null one, as execve(2) wants it."""
        places = [self.place(word + b"\0") for word in words]
        return self.place(struct.pack(f"={len(places) + 1}Q", *places, 0))

    def call(
        self,
        name: str,
        *arguments: int | bytes,
        may: Collection[int] | None = (),
        marks: int = 0,
    ) -> At:
        """Add a call; what it gives, as an argument of later ones. `may` are the errnos that it may
        fail with (None: any): then the next one is made, too. Bytes are texts.
        """
        what = b""
        words = [0, 0, 0, 0, 0, 0]
        for index, argument in enumerate(arguments):
            if type(argument) is At:
                marks |= 1 << index
                words[index] = argument
            elif type(argument) is bytes:
                what = what or argument
                words[index] = self.place(argument + b"\0")
            else:
                words[index] = argument & _MASK  # type: ignore[operator]
        if may is None or may:
            marks |= MAY_FAIL
        number = VISIT if name == "visit" else NUMBERS[name]
        self._rows.append(ROW.pack(number, marks, *words))
        self.calls.append(Call(name, what, may))
        return At(RESULTS + 8 * (len(self._rows) - 1))

    def clone(self, flags: int, stack: int, cgroup: int = 0, marks: int = 0) -> None:
        """A child: the rows from here to `tail` are its own, and process 1 goes on with those after
        that. The first descriptor of the table is told the child's end. `marks` may be MAIN (it is
        what process 1 lives for) and SILENT (there is no answer if it has its program).
        """
        arguments = struct.pack(
            "=11Q", flags, 0, 0, 0, 17, stack, 4096 if stack else 0, 0, 0, 0, cgroup
        )
        self.call("clone3", self.place(arguments), 88, marks=CLONE | marks)

    def tail(self) -> None:
        """The rows of a child are over."""
        self._tail = len(self._rows)

    @property
    def bulk(self) -> bytes:
        """What has to lie at BULK before the table is sent."""
        return bytes(self._data) if self._bulk else b""

    def message(self, reply: int) -> bytes:
        """As process 1 reads it. `reply` gets the answer: a descriptor of its own, or ~n for the
        one that comes with the table as number n. Raises OSError (E2BIG).
        """
        data = b"" if self._bulk else bytes(self._data)
        size = len(data) + ROW.size * len(self._rows)
        short = size <= LONGEST and len(self._rows) <= MOST_ROWS
        if not short or len(self._data) > BULK_SIZE:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        head = HEAD.pack(len(self._rows), self._tail, HEAD.size + len(data), reply)
        return b"".join((head, data, *self._rows))

    def read(self, answer: bytes) -> list[int | None]:
        """The results of an answer, if nothing is wrong with it. A table that is sent to many is
        answered alike by most. Raises Failed.
        """
        if answer != self._good[0]:
            results = self.results(answer)
            self.check(results)
            self._good = (answer, results)
        return self._good[1]

    @staticmethod
    def results(answer: bytes) -> list[int | None]:
        """What each call gave: an errno below 0, None for one that was not made."""
        return [
            None if one == NOT_MADE else one
            for one in struct.unpack(f"={len(answer) // 8}q", answer)
        ]

    def check(self, results: Sequence[int | None]) -> None:
        """Raises Failed where a call failed that may not."""
        for row, (call, result) in enumerate(zip(self.calls, results, strict=True)):
            if result is None or result >= 0 or call.may is None or -result in call.may:
                continue
            what = " ".join([call.name, *([os.fsdecode(call.what)] if call.what else [])])
            wrong = Failed(-result, os.strerror(-result), what)
            wrong.row = row
            raise wrong


def capability_sets(table: Table, held: int, inheritable: int) -> tuple[int, int]:
    """What capset(2) takes: `held` is effective and permitted."""
    sets = [part >> shift & 0xFFFFFFFF for shift in (0, 32) for part in (held, held, inheritable)]
    header = table.place(struct.pack("=Ii", CAPABILITY_VERSION, 0))
    return header, table.place(struct.pack("=6I", *sets))
