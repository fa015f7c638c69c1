"""How the supervisor's process comes to be: a new interpreter, or a fork of a command that has just
begun, which costs a tenth of that.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_sandbox.oci.supervisor import messages, sealed

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
_PROGRAM: Final = (
    "import json,os,sys\n"
    "os.environ.pop('LD_LIBRARY_PATH',None)\n"
    "sys.path[:]=json.loads(sys.argv[2])\n"
    "from pytest_sandbox.oci.supervisor.process import main\n"
    "from pytest_sandbox.oci.supervisor.jobs import load\n"
    "for name in sys.argv[3:]: load(name)\n"
    "main(int(sys.argv[1]))\n"
)


class Child:
    """The process, which waits for what it is to be; `end` is our end of its channel, and `log` a
    file with what it wrote.
    """

    def __init__(self, pid: int, end: socket.socket, log: int) -> None:
        self.pid = pid
        self.end = end
        self.log = log
        self._waited = False

    def ended(self) -> bool:
        """Whether it is gone already."""
        if not self._waited:
            with contextlib.suppress(ChildProcessError):
                self._waited = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self._waited

    def kill(self) -> None:
        """End it at once."""
        if self._waited:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end."""
        if not self._waited:
            self._waited = True
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


_ahead: list[tuple[int, Child]] = []


def spawn_ahead(jobs: Sequence[str] = ()) -> None:
    """Make the process now that `spawn` will be asked for, while there is other work to do.

    `jobs` are modules of jobs that it will need. `forget_ahead` ends one that nobody asked for.
    """
    forget_ahead()
    _ahead.append((os.getpid(), _interpreter(jobs)))


def forget_ahead() -> None:
    """End what was made ahead, if nobody asked for it."""
    while _ahead:
        owner, child = _ahead.pop()
        child.end.close()
        os.close(child.log)
        if owner == os.getpid():
            child.kill()
            child.wait()


def spawn() -> Child:
    """A new interpreter, or the one that was made ahead by this process."""
    if _ahead and _ahead[0][0] == os.getpid() and not _ahead[0][1].ended():
        return _ahead.pop()[1]
    forget_ahead()
    return _interpreter()


def _interpreter(jobs: Sequence[str] = ()) -> Child:
    import subprocess

    program = sealed.interpreter()
    libraries = {"LD_LIBRARY_PATH": program.libraries} if program.libraries else {}
    mine, theirs = messages.pair()
    paths = [str(Path(__file__).resolve().parents[3]), *(path for path in sys.path if path)]
    channel = str(theirs.fileno())
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, channel, json.dumps(paths), *jobs]
    if sys.pycache_prefix:
        command[1:1] = ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    log = os.memfd_create("pytest-sandbox-supervisor")
    try:
        process = subprocess.Popen(
            command,
            executable=program.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
            env=_ENVIRONMENT | libraries,
            start_new_session=True,
            cwd="/",
        )
    except BaseException:
        os.close(log)
        mine.close()
        raise
    finally:
        theirs.close()
        if program.descriptor >= 0:
            os.close(program.descriptor)
    process.returncode = 0  # Child waits for it
    return Child(process.pid, mine, log)


def fork(jobs: Sequence[str] = ()) -> Child:
    """A fork of this process, which must have no threads yet, and no files open that matter.

    `jobs` are modules of jobs that it will need. A user's own interpreter is not forked: sealed.
    """
    if sealed.is_ours():
        return _interpreter(jobs)
    mine, theirs = messages.pair()
    log = os.memfd_create("pytest-sandbox-supervisor")
    pid = os.fork()
    if pid:
        theirs.close()
        return Child(pid, mine, log)
    try:
        os.setsid()
        gc.disable()  # until it serves: there is nothing to collect in what is just imported
        from pytest_sandbox.oci.supervisor.jobs import load
        from pytest_sandbox.oci.supervisor.process import main

        for name in jobs:  # here, and not in the command: it goes on meanwhile
            load(name)
        main(_withdraw(theirs, log))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(1)


def _withdraw(channel: socket.socket, log: int) -> int:
    """Leave everything of the command behind but the channel, whose descriptor it gives."""
    os.chdir("/")
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    sys.dont_write_bytecode = True
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
        signal.signal(signal.Signals[name], signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for source, standard in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, standard)
    kept = channel.detach()
    os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 16)
    return kept
