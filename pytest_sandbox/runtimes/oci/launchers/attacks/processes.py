"""Attacks on other processes: the sandbox's pid 1 and whatever else /proc shows.

Pid 1 may be a program of the launcher's, which holds the host's memory, paths and descriptors. A
process whose program is a file of the sandbox itself (an init, a shell) holds nothing that is not
the sandbox's, and may be looked at.
"""

# pathlib would stand between an attack and its system calls.
# ruff: noqa: PTH110, PTH115, PTH116, PTH208

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
import time
from typing import Final

from pytest_sandbox.runtimes.oci.launchers.attacks.calls import call, first
from pytest_sandbox.runtimes.oci.launchers.attacks.outside import Attack, Outside

_PRIVATE: Final = (
    "auxv",
    "environ",
    "io",
    "maps",
    "mem",
    "numa_maps",
    "pagemap",
    "smaps",
    "smaps_rollup",
    "stack",
    "syscall",
)
_SHOWN: Final = ("cgroup", "cmdline", "comm", "environ", "maps", "mountinfo", "stat", "status")
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_DETACH: Final = 17
_GET_SEALS: Final = 1034
_SEAL_WRITE: Final = 8
_MOST: Final = 1 << 20


def others() -> list[int]:
    """Every process that /proc shows but this one."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(set(found) - {os.getpid()})


def foreign(pid: int) -> bool:
    """Whether a process runs a program that is no file of this sandbox, or that cannot be seen."""
    link = f"/proc/{pid}/exe"
    try:
        there, here = os.stat(link), os.stat(os.readlink(link))
    except OSError:
        return True
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def strangers() -> list[int]:
    """The processes of others whose program is none of this sandbox."""
    return [pid for pid in others() if os.path.exists(f"/proc/{pid}/stat") and foreign(pid)]


def identity(place: str | int) -> tuple[int, int]:
    """What a folder is, whatever path leads to it."""
    found = os.stat(place)
    return found.st_dev, found.st_ino


def top(folder: int) -> tuple[int, int]:
    """Where the way up from an open folder ends. Closes it. Raises OSError."""
    while True:
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        reached, here = identity(above), identity(folder)
        os.close(folder)
        folder = above
        if reached == here:
            os.close(folder)
            return reached


def read(path: str) -> bytes:
    """The beginning of a file; nothing where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MOST)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _folders(_: Outside) -> str | None:
    """Root and current folder of every process lead to the sandbox's own root."""
    found: list[str | None] = []
    for pid in others():
        for link in ("root", "cwd"):
            with contextlib.suppress(OSError):
                folder = os.open(f"/proc/{pid}/{link}", os.O_RDONLY | os.O_DIRECTORY)
                if top(folder) != identity("/"):
                    found.append(f"/proc/{pid}/{link} leads to another root")
    return first(found)


def _memory(_: Outside) -> str | None:
    found: list[str | None] = []
    for pid in strangers():
        for name in _PRIVATE:
            with contextlib.suppress(OSError):
                descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
                if name == "mem" or os.read(descriptor, 1):
                    found.append(f"/proc/{pid}/{name} of a foreign program can be read")
        for link in ("exe", "root", "cwd"):
            with contextlib.suppress(OSError):
                found.append(f"/proc/{pid}/{link} is {os.readlink(f'/proc/{pid}/{link}')}")
        for folder in ("fd", "map_files", "ns"):
            with contextlib.suppress(OSError):
                # How many descriptors there are is no secret; what they are is one.
                for name in os.listdir(f"/proc/{pid}/{folder}"):
                    if os.readlink(f"/proc/{pid}/{folder}/{name}"):
                        found.append(f"/proc/{pid}/{folder}/{name} of a foreign program is shown")
    return first(found)


def _traces(outside: Outside) -> str | None:
    """What /proc shows of everybody: no word of the outside, no path that is not there inside."""
    found: list[str | None] = []
    for pid in others():
        for name in _SHOWN:
            text = read(f"/proc/{pid}/{name}")
            found += [
                f"/proc/{pid}/{name} holds {mark.decode(errors='replace')!r}"
                for mark in outside.marks
                if mark in text
            ]
    for pid in strangers():
        for word in read(f"/proc/{pid}/cmdline").split(b"\0"):
            if word.startswith(b"/") and not os.path.exists(word):
                found.append(f"/proc/{pid}/cmdline names {word.decode(errors='replace')!r}")
    return first(found)


def _descriptors(_: Outside) -> str | None:
    """Descriptors of other processes: none leads out of the sandbox's root."""
    found: list[str | None] = []
    for pid in others():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            path = f"/proc/{pid}/fd/{name}"
            with contextlib.suppress(OSError):
                kind = os.stat(path).st_mode
                if stat.S_ISDIR(kind):
                    if top(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) != identity("/"):
                        found.append(f"{path} is a folder outside")
                elif stat.S_ISREG(kind) and not _reachable(path):
                    os.close(os.open(path, os.O_RDONLY))
                    found.append(f"{path} is a file outside")
    return first(found)


def _reachable(link: str) -> bool:
    """Whether what a link of /proc stands for is at that path in the sandbox, too, or nowhere."""
    path = os.readlink(link)
    if path.startswith("/memfd:") or path.endswith(" (deleted)"):
        return False
    try:
        return identity(path) == identity(link)
    except OSError:
        return False


def _ptrace(_: Outside) -> str | None:
    found: list[str | None] = []
    for pid in strangers():
        if call("ptrace", _PTRACE_SEIZE, pid, 0, 0) >= 0:
            found.append(f"the foreign process {pid} can be traced")
            call("ptrace", _PTRACE_DETACH, pid, 0, 0)
        space = ctypes.create_string_buffer(8)
        local = (ctypes.c_ulong * 2)(ctypes.addressof(space), 8)
        # A program without address space randomization begins here; elsewhere EFAULT says that
        # the memory itself was looked into.
        remote = (ctypes.c_ulong * 2)(0x400000, 8)
        done = call("process_vm_readv", pid, local, 1, remote, 1, 0)
        if done >= 0 or done == -14:
            found.append(f"memory of the foreign process {pid} can be read")
    return first(found)


def _take_descriptor(_: Outside) -> str | None:
    found: list[str | None] = []
    for pid in strangers():
        handle = call("pidfd_open", pid, 0)
        if handle < 0:
            continue
        for number in range(16):
            if call("pidfd_getfd", handle, number, 0) >= 0:
                found.append(f"descriptor {number} of the foreign process {pid} can be taken")
        os.close(handle)
    return first(found)


def _other_namespace(_: Outside) -> str | None:
    """/proc is that of this pid namespace, and the namespace is not the machine's."""
    found: list[str | None] = []
    if os.readlink("/proc/self") != str(os.getpid()):
        found.append("/proc is of another pid namespace")
    if read("/proc/2/comm").strip() == b"kthreadd":
        found.append("the kernel's threads are shown")
    return first(found)


def _kill_first(_: Outside) -> str | None:
    """Pid 1 survives what ends any process: its namespace protects it.

    An init of the sandbox's own may have handlers, and end by them. One of the launcher's may not.
    """
    before = _started()
    others = signal.valid_signals() if foreign(1) else ()
    for number in (signal.SIGKILL, signal.SIGSTOP, *others):
        with contextlib.suppress(OSError):
            os.kill(1, number)
    time.sleep(0.01)
    state = read("/proc/1/stat").rpartition(b")")[2].split()[:1]
    if _started() != before or state in ([b"Z"], [b"X"], [b"T"]):
        return "pid 1 was ended or stopped"
    return None


def _started() -> bytes:
    """When pid 1 began, in clock ticks."""
    return b"".join(read("/proc/1/stat").rpartition(b")")[2].split()[19:20])


def _own_program(_: Outside) -> str | None:
    """The program that this process runs, if it is none of the sandbox, can never be written to.

    Before its own program, a command is the launcher's: `/proc/self/exe` as a script's interpreter
    keeps it open (CVE-2019-5736). "Busy" is no refusal, since that ends.
    """
    if not foreign(os.getpid()):
        return None
    program = os.open("/proc/self/exe", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            if fcntl.fcntl(program, _GET_SEALS) & _SEAL_WRITE:
                return None
        os.close(os.open("/proc/self/exe", os.O_WRONLY))
    except OSError as error:
        if error.errno != errno.ETXTBSY:
            return None
    finally:
        os.close(program)
    return f"{os.readlink('/proc/self/exe')} can be written to"


def _parent(_: Outside) -> str | None:
    """The parent of a command is in the sandbox, or cannot be named from here."""
    parent = os.getppid()
    if parent == 0:
        return None
    if not os.path.exists(f"/proc/{parent}/stat"):
        return f"the parent {parent} is outside"
    return None


ATTACKS: Final = (
    Attack("proc-folders", "root and cwd of other processes", _folders),
    Attack("proc-memory", "maps, mem, environ of a foreign pid 1", _memory),
    Attack("proc-traces", "words and paths of the host in /proc", _traces),
    Attack("proc-descriptors", "descriptors of other processes", _descriptors),
    Attack("proc-namespace", "/proc of another pid namespace", _other_namespace),
    Attack("ptrace", "ptrace, process_vm_readv of a foreign pid 1", _ptrace),
    Attack("pidfd", "descriptors of a foreign pid 1 by pidfd_getfd", _take_descriptor),
    Attack("kill-first", "SIGKILL to pid 1, every signal to a foreign one", _kill_first),
    Attack("launcher-program", "the launcher's own program written to", _own_program),
    Attack("parent", "the process that started the command", _parent),
)
