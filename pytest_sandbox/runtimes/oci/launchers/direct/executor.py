"""The program of process 1 in Python (see program): for machines that it has no code for, for hosts
that let no file of memory be executed, and for the self-test, whose attacks have to be tried by a
Python inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import select
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.launchers.attacks import Outside, run_all
from pytest_sandbox.runtimes.oci.launchers.direct.program import (
    BASE,
    BUFFER,
    CHANNEL,
    GIVEN,
    RESULTS,
    SIGNALS,
    SIZE,
)
from pytest_sandbox.runtimes.oci.launchers.direct.tables import (
    CLONE,
    HEAD,
    MAIN,
    MAY_FAIL,
    NOT_MADE,
    ROW,
    SILENT,
    VISIT,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FIXED: Final = 0x100000  # MAP_FIXED_NOREPLACE
_MOST: Final = 64
_LARGEST: Final = 1 << 20
_SIGNAL: Final = 128
"""Bytes of a struct signalfd_siginfo."""


def live() -> NoReturn:
    """Serve the channel, as descriptor CHANNEL, until its end."""
    try:
        _forget_arguments()
        _Executor().serve()
    finally:
        os._exit(1)


class _Executor:
    def __init__(self) -> None:
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        # Shared: what a child's calls gave is read here, when it has its program or has ended.
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _FIXED
        place = self._libc.mmap(
            *(ctypes.c_void_p(BASE), ctypes.c_size_t(SIZE)),
            *(mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, ctypes.c_long(0)),
        )
        if place != BASE:
            raise MemoryError
        self._channels: dict[int, int] = {}
        self._main = 0
        self._kept = self._silent = False
        self._failed = ctypes.c_bool.from_address(BASE)

    def serve(self) -> None:
        poll = select.poll()
        for descriptor in (CHANNEL, SIGNALS):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if SIGNALS in ready:
                self._signal(os.read(SIGNALS, _SIGNAL)[0])
            if CHANNEL in ready and not self._hear():
                if not self._main:
                    os._exit(0)
                poll.unregister(CHANNEL)

    def _signal(self, number: int) -> None:
        if number != signal.SIGCHLD and self._main:
            os.kill(self._main, number)
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._main:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
            if pid in self._channels:
                times = [part for one in (used.ru_utime, used.ru_stime) for part in _time(one)]
                self._say(self._channels[pid], struct.pack("=ixxxxqqqq", status, *times))
                os.close(self._channels.pop(pid))

    def _hear(self) -> bool:
        """Take a table; False at the end."""
        with _end_of(CHANNEL) as end:
            try:
                data, given, flags, _ = socket.recv_fds(
                    end, _LARGEST, _MOST, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionError:
                return False
        if not data or flags & socket.MSG_CTRUNC:
            return False
        ctypes.memmove(BUFFER, data, len(data))
        ctypes.memmove(GIVEN, struct.pack(f"={len(given)}i", *given), 4 * len(given))
        count, tail, _, reply = HEAD.unpack_from(data)
        results = (ctypes.c_int64 * count).from_address(RESULTS)
        results[:] = [NOT_MADE] * count
        self._kept = self._silent = self._failed.value = False
        self._run(data, range(count), tail, results, given)
        if self._failed.value or not self._silent:
            self._say(given[~reply] if reply < 0 else reply, bytes(results))
        for descriptor in given[int(self._kept) :]:
            os.close(descriptor)
        return True

    def _run(self, data: bytes, rows: range, tail: int, results: Any, given: Sequence[int]) -> None:
        for row in rows:
            place = HEAD.unpack_from(data)[2] + row * ROW.size
            number, marks, *words = ROW.unpack_from(data, place)
            for index in range(6):
                if marks >> index & 1:
                    words[index] = ctypes.c_int32.from_address(words[index]).value
            if number == VISIT:
                _visit(words)
            results[row] = result = self._make(number, words)
            if result < 0 and marks & CLONE:
                self._run(data, range(tail, rows.stop), tail, results, given)
                return
            if result < 0 and not marks & MAY_FAIL:
                return
            if result >= 0 and marks & CLONE:
                if result == 0:
                    self._child(data, range(row + 1, tail), results, given)
                self._channels[result] = given[0]
                self._kept = True
                self._silent = bool(marks & SILENT)
                if marks & MAIN:
                    self._main = result
                self._run(data, range(tail, rows.stop), tail, results, given)
                return

    def _child(self, data: bytes, rows: range, results: Any, given: Sequence[int]) -> NoReturn:
        code = 127
        try:
            self._run(data, rows, 0, results, given)
            missing = {0, -errno.ENOENT, -errno.ENOTDIR}
            failed = {min(results[row], 0) for row in rows if results[row] != NOT_MADE}
            code = 127 if failed <= missing else 126
        finally:
            self._failed.value = True
            os._exit(code)

    def _make(self, number: int, words: Sequence[int]) -> int:
        arguments = [ctypes.c_long(word - (1 << 64) if word >> 63 else word) for word in words]
        self._libc.syscall.restype = ctypes.c_long
        result = int(self._libc.syscall(ctypes.c_long(number), *arguments))
        return -ctypes.get_errno() if result < 0 else result

    @staticmethod
    def _say(descriptor: int, data: bytes) -> None:
        try:
            with _end_of(descriptor) as end:
                end.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            pass  # nobody listens


@contextlib.contextmanager
def _end_of(descriptor: int) -> Iterator[socket.socket]:
    """It stays open."""
    end = messages.end_of(descriptor)
    try:
        yield end
    finally:
        end.detach()


def _time(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1e6)


def _visit(words: Sequence[int]) -> NoReturn:
    """Try every attack of the launcher's self-test, with just what a command has. The words are a
    descriptor that is told the findings, and where and how long what they should know is.
    """
    descriptor, place, size, *_ = words
    end = messages.end_of(descriptor)
    try:
        known = json.loads(ctypes.string_at(place, size))
        outside = Outside(
            ports=tuple(known["ports"]),
            sockets=tuple(known["sockets"]),
            kept=frozenset({descriptor}),
        )
        messages.receive(end)  # process 1 is what it will be
        messages.send(end, {"possible": run_all(outside)})
    except BaseException as error:
        messages.send(end, {"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _forget_arguments() -> None:
    """Nobody in the sandbox reads in /proc/1/cmdline how the supervisor was started."""
    linux.prctl(linux.PR_SET_NAME, b"sandbox-init")
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    if end > begin:
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, b"sandbox-init", min(12, end - begin))
