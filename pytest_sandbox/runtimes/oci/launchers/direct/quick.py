"""A command without a copy of process 1: its system calls as a table (see spawn)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_sandbox.oci import linux
from pytest_sandbox.runtimes.oci.launchers.direct import command
from pytest_sandbox.runtimes.oci.launchers.direct.spawn import (
    Calls,
    Row,
    failed,
    numbers,
    prepare,
    spawn,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_sandbox.runtimes.oci.launchers.direct.command import Confinement

_LAST: Final = 0xFFFFFFFF


class Begun(NamedTuple):
    """A child: it runs its program, or `status` is 126 or 127 and it has ended."""

    pid: int
    status: int = 0


class QuickStart:
    """Starts commands of one sandbox. What they have in common is laid out once."""

    def __init__(self, confinement: Confinement, calls: Calls) -> None:
        prepare()
        self._confinement = confinement
        self._calls = calls
        self._kept: list[Any] = []
        """What rows point to."""
        rows = []
        for number, (soft, hard) in confinement.rlimits:
            pair = self._place(struct.pack("=QQ", soft & _MASK, hard & _MASK))
            rows.append(Row(calls.prlimit64, (0, number, pair)))
        if confinement.deny:
            code = self._place(confinement.deny)
            program = struct.pack("=HxxxxxxQ", len(confinement.deny) // 8, code)
            rows.append(Row(calls.prctl, (linux.PR_SET_SECCOMP, 2, self._place(program))))
        self._limits = rows
        self._env = _texts(_pairs(confinement.env), self._kept)

    def _place(self, data: bytes) -> int:
        self._kept.append(ctypes.create_string_buffer(data, len(data)))
        return ctypes.addressof(self._kept[-1])

    def begin(
        self,
        message: Mapping[str, Any],
        stdio: Sequence[int],
        cgroup: int | None,
        fence: int = -1,
    ) -> Begun:
        """Start one, which has the descriptor `fence` until it has left this memory. Raises
        OSError where there can be no process; UnknownUser, InvalidImage, MissingDirectory.
        """
        held: list[Any] = []
        user = command.user_of(self._confinement, message)
        rows = self._before(stdio, fence)
        rows += self._identity(user, held)
        folder = len(rows)
        first = folder + 1
        rows += self._program(message, user, held)
        flags = linux.CLONE_INTO_CGROUP if cgroup is not None else 0
        spawned = spawn(rows, flags=flags, cgroup=cgroup or 0)
        wrong = failed(rows, spawned)
        if wrong is None:
            return Begun(spawned.pid)
        index, number = wrong
        if index == folder:
            raise command.no_folder(message["cwd"])
        results = [result for result in spawned.results[first:] if result is not None]
        if index < first or -errno.E2BIG in results:
            number = errno.E2BIG if index >= first else number
            raise OSError(number, os.strerror(number))
        cannot = any(-result in command.CANNOT for result in results)
        return Begun(spawned.pid, 126 if cannot else 127)

    def rehearse(self) -> None:
        """Do all for a command but start it: then the first one is as quick as later ones."""
        held: list[Any] = []
        user = self._confinement.user
        self._before((0, 1, 2), -1)
        self._identity(user, held)
        self._program({"argv": ["true"], "set": {}, "cwd": "/", "user": ""}, user, held)

    def _before(self, stdio: Sequence[int], fence: int) -> list[Row]:
        """Its session, its descriptors and its limits."""
        calls = self._calls
        rows = [Row(calls.setsid)]
        rows += [Row(calls.dup3, (one, number, 0)) for number, one in enumerate(stdio)]
        if fence > 3:
            rows.append(Row(calls.dup3, (fence, 3, os.O_CLOEXEC)))
        rows.append(Row(calls.close_range, (3 if fence < 0 else 4, _LAST, 0)))
        return rows + self._limits

    def _program(
        self, message: Mapping[str, Any], user: Mapping[str, Any], held: list[Any]
    ) -> list[Row]:
        """Its working folder, then its program in each of the places where it may be."""
        calls = self._calls
        env = command.environment(self._confinement, message, user)
        argv = [os.fsencode(word) for word in message["argv"]]
        words = _texts(argv, held)
        entries = self._env if env is self._confinement.env else _texts(_pairs(env), held)
        return [
            Row(calls.chdir, (_text(os.fsencode(message["cwd"]), held),)),
            *(
                Row(calls.execve, (_text(program, held), words, entries), rest=True)
                for program in command.candidates(argv[0], env.get(b"PATH", b""))
            ),
        ]

    def _identity(self, user: Mapping[str, Any], held: list[Any]) -> list[Row]:
        """The sandbox's root stays who it is: its capabilities are cut to the bounding set by
        execve(2) (capabilities(7)), and until then it has one more than other commands, which keeps
        them away from the memory that it shares with process 1.
        """
        calls = self._calls
        groups = user["groups"]
        packed = ctypes.create_string_buffer(struct.pack(f"={len(groups)}I", *groups) + b"\0")
        held.append(packed)
        uid, gid = user["uid"], user["gid"]
        rows = [Row(calls.setgroups, (len(groups), ctypes.addressof(packed)))]
        if gid:
            rows.append(Row(calls.setresgid, (gid, gid, gid)))
        if uid:
            rows.append(Row(calls.setresuid, (uid, uid, uid)))
        return rows


_MASK: Final = (1 << 64) - 1


class Commands(NamedTuple):
    """How a sandbox's commands are started; `quick` is None on machines that it has no code for."""

    confinement: command.Confinement
    quick: QuickStart | None

    @classmethod
    def of(cls, process: Mapping[str, Any], user: Mapping[str, Any], deny: bytes) -> Commands:
        """From the `process` of a runtime spec. The way of a command is gone once."""
        confinement = command.Confinement.of(process, user, deny)
        calls = numbers()
        if calls is None:
            return cls(confinement, None)
        quick = QuickStart(confinement, calls)
        quick.rehearse()
        return cls(confinement, quick)


def _pairs(env: Mapping[bytes, bytes]) -> list[bytes]:
    return [name + b"=" + value for name, value in env.items()]


def _text(data: bytes, held: list[Any]) -> int:
    held.append(ctypes.create_string_buffer(data))
    return ctypes.addressof(held[-1])


def _texts(words: Iterable[bytes], held: list[Any]) -> int:
    """An array of pointers that ends with a null one, as execve(2) wants it."""
    places = [_text(word, held) for word in words]
    array = (ctypes.c_void_p * (len(places) + 1))(*places, None)
    held.append(array)
    return ctypes.addressof(array)
