"""The program of process 1 and its Python twin: what they do with tables."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sandbox.oci import linux
from pytest_sandbox.oci.supervisor import messages
from pytest_sandbox.runtimes.oci.agent import End
from pytest_sandbox.runtimes.oci.launchers.direct import executor, hands, program
from pytest_sandbox.runtimes.oci.launchers.direct.program import BULK, CHANNEL, SIGNALS, STACK
from pytest_sandbox.runtimes.oci.launchers.direct.tables import (
    MAIN,
    NOBODY,
    SILENT,
    At,
    Failed,
    Table,
    given,
)
from tests.oci.supervisor.conftest import soon

HEARD = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)
SHARED = 0x100 | 0x4000  # CLONE_VM, CLONE_VFORK
WAIT = 0x4000
HERE = -100


class Process:
    """A process with the program, or the Python; `end` is the way to it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.end, theirs = messages.pair()
        image = program.program() if kind == "program" else -1
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, HEARD)
                signals = linux.signalfd(sum(1 << (number - 1) for number in HEARD))
                if kind == "program":
                    image = fcntl.fcntl(image, fcntl.F_DUPFD_CLOEXEC, 40)
                ends = [fcntl.fcntl(one, fcntl.F_DUPFD, 40) for one in (theirs.fileno(), signals)]
                for end, place in zip(ends, (CHANNEL, SIGNALS), strict=True):
                    os.dup2(end, place)
                if kind == "python":
                    linux.close_range(SIGNALS + 1)
                    executor.live()
                linux.close_all_but([CHANNEL, SIGNALS, image])
                os.execve(image, ["sandbox-init"], {})
            finally:
                os._exit(99)
        theirs.close()
        if image >= 0:
            os.close(image)
        table = Table()
        table.call("fcntl", CHANNEL, fcntl.F_GETFD)
        assert self.tell(table) == [0], "it is there"

    def tell(self, table, descriptors=()):
        return hands.tell(self.end, table, descriptors)

    def command(self, script, *, marks=0, before=(), after=()):
        """A shell script as a command: its channel, and what its table gave."""
        shared = self.kind == "program"
        table = Table()
        for call in before:
            table.call(*call)
        table.clone(SHARED if shared else WAIT, STACK - 4096 if shared else 0, marks=marks)
        table.call("rt_sigprocmask", 2, table.place(bytes(8)), 0, 8)
        for standard in range(3):
            table.call("dup3", given(1 + standard), standard, 0)
        table.call("close_range", 3, 0xFFFFFFFF, 0)
        words = table.texts([b"sh", b"-c", script.encode()])
        table.call("execve", b"/bin/sh", words, table.texts([b"WORD=x"]), may=None)
        table.tail()
        for call in after:
            table.call(*call)
        mine, theirs = messages.pair()
        reader, writer = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        with theirs:
            hands.send(self.end, table.message(~0), [theirs.fileno(), null, writer, writer])
        os.close(writer)
        os.close(null)
        return mine, hands.answer(mine, table), reader

    def status(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def descriptors(self):
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@pytest.fixture(params=["program", "python"])
def process(request):
    if request.param == "program" and not program.is_there():
        pytest.skip("there is no program for this machine")
    found = Process(request.param)
    yield found
    found.end.close()
    try:
        os.kill(found.pid, signal.SIGKILL)
        os.waitpid(found.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def read(descriptor):
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def ended(channel):
    channel.settimeout(10)
    return End.read(channel.recv(100))


def test_the_code_is_that_of_its_listing(tmp_path):
    if not (shutil.which("as") and shutil.which("objcopy")) or os.uname().machine != "x86_64":
        pytest.skip("no assembler for it")
    listing = Path(program.__file__).with_name("init.s")
    code = tmp_path / "init.bin"
    subprocess.run(["as", "-o", tmp_path / "init.o", listing], check=True)
    subprocess.run(["objcopy", "-O", "binary", tmp_path / "init.o", code], check=True)
    assert program._CODE["x86_64"] == code.read_bytes()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_it_is_found_whatever_descriptors_are_free(taken):
    if not program.is_there():
        pytest.skip("there is no program for this machine")
    script = (
        "import os, sys; from pytest_sandbox.runtimes.oci.launchers.direct import program\n"
        "for _ in range(int(sys.argv[1])): os.dup(0)\n"
        "sys.exit(not program.is_there())"
    )
    assert subprocess.run([sys.executable, "-c", script, str(taken)], check=False).returncode == 0


def test_nobody_can_write_to_the_program():
    descriptor = program.program()
    for action in (
        lambda: os.write(descriptor, b"x"),
        lambda: os.ftruncate(descriptor, 0),
        lambda: os.posix_fallocate(descriptor, 0, 1 << 20),
        lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0),
    ):
        with pytest.raises(PermissionError):
            action()
    os.close(descriptor)


def test_calls_are_made_in_their_order_with_what_earlier_ones_gave(process, tmp_path):
    file = tmp_path / "file"
    table = Table()
    opened = table.call("openat", HERE, os.fsencode(file), os.O_CREAT | os.O_WRONLY, 0o600)
    table.call("write", opened, b"some text", 9)
    table.call("close", opened)
    gave = process.tell(table)
    assert gave[1:] == [9, 0]
    assert gave[0] > SIGNALS
    assert file.read_text() == "some text"


def test_the_first_failure_is_the_last_call_unless_it_may(process, tmp_path):
    table = Table()
    table.call("chdir", b"/no/such", may=(errno.ENOENT,))
    table.call("mkdirat", HERE, os.fsencode(tmp_path / "made"), 0o755)
    table.call("chdir", b"/no/such/folder")
    table.call("mkdirat", HERE, os.fsencode(tmp_path / "never"), 0o755)
    with pytest.raises(Failed, match="chdir /no/such/folder") as wrong:
        process.tell(table)
    assert (wrong.value.row, wrong.value.errno) == (2, errno.ENOENT)
    assert [one.name for one in tmp_path.iterdir()] == ["made"]
    # What may fail may not fail with anything.
    table = Table()
    table.call("chdir", b"/no/such", may=(errno.EACCES,))
    with pytest.raises(Failed, match="No such file"):
        process.tell(table)


def test_descriptors_that_come_along_are_closed_after_the_table(process):
    before = process.descriptors()
    reader, writer = os.pipe()
    for _ in range(3):
        table = Table()
        table.call("write", given(1), b"said", 4)
        assert process.tell(table, [reader, writer]) == [4]
        assert os.read(reader, 10) == b"said"
    table = Table()
    table.call("chdir", b"/no/such")
    with pytest.raises(Failed):
        process.tell(table, [reader, writer])
    assert soon(lambda: process.descriptors() == before)
    os.close(reader)
    os.close(writer)


def test_who_is_told_can_be_chosen(process):
    table = Table()
    table.call("setsid", may=(errno.EPERM,))
    assert hands.run(process.end, table)[0] in {process.pid, -errno.EPERM}
    hands.send(process.end, table.message(NOBODY), ())
    table = Table()
    table.call("fchdir", 999, may=(errno.EBADF,))
    assert process.tell(table) == [-errno.EBADF], "of the one before nothing was said"


def test_what_is_read_can_be_sent_out(process, tmp_path):
    (tmp_path / "file").write_text("inside")
    mine, theirs = messages.pair()
    table = Table()
    file = table.call("openat", HERE, os.fsencode(tmp_path / "file"), os.O_RDONLY)
    size = table.call("read", file, BULK, 4096)
    table.call("close", file)
    table.call("sendto", given(0), BULK, size, 0, 0, 0)
    with mine, theirs:
        process.tell(table, [theirs.fileno()])
        assert mine.recv(100) == b"inside"


def test_long_texts_go_by_themselves(process):
    word = b"x" * 100_000
    table = Table(bulk=True)
    words = table.texts([b"sh", b"-c", b'echo "${#0}"', word])
    assert len(table.bulk) > len(word)
    hands.lay_bulk(process.end, table)
    shared = process.kind == "program"
    table.clone(SHARED if shared else WAIT, STACK - 4096 if shared else 0)
    table.call("dup3", given(1), 1, 0)
    table.call("execve", b"/bin/sh", words, 0)
    table.tail()
    # The arguments of the clone lie with the rest.
    hands.lay_bulk(process.end, table)
    mine, theirs = messages.pair()
    reader, writer = os.pipe()
    with theirs:
        hands.send(process.end, table.message(~0), [theirs.fileno(), writer])
    os.close(writer)
    hands.answer(mine, table)
    assert read(reader) == b"100000\n"
    assert ended(mine).code == 0
    mine.close()


def test_a_command_runs_and_its_end_is_told(process):
    before = process.descriptors()
    channel, gave, reader = process.command("echo $WORD; exit 7")
    assert gave[-1] is None, "it did not come back"
    assert read(reader) == b"x\n"
    end = ended(channel)
    assert end.code == 7
    assert 0 < end.cpu < 5
    assert channel.recv(10) == b"", "there is no more to say"
    channel.close()
    assert soon(lambda: process.descriptors() == before)


def test_many_commands_at_once_end_one_by_one(process):
    started = [process.command(f"read x; exit {number}") for number in range(20)]
    # /dev/null is at its end at once: each reads nothing and goes.
    assert [ended(channel).code for channel, _, _ in started] == list(range(20))
    for channel, _, reader in started:
        channel.close()
        os.close(reader)


def test_a_signal_is_an_end(process):
    channel, _, reader = process.command("kill -9 $$")
    assert ended(channel).code == -9
    channel.close()
    os.close(reader)


def test_what_comes_before_and_after_a_child_is_done_by_process_one(process, tmp_path):
    made = os.fsencode(tmp_path / "made")
    channel, gave, reader = process.command(
        f"test -d {tmp_path}/made && echo seen",
        before=[("mkdirat", HERE, made, 0o700)],
        after=[("unlinkat", HERE, made, 0x200)],
    )
    assert (gave[0], gave[-1]) == (0, 0)
    os.close(reader)
    assert soon(lambda: not (tmp_path / "made").exists())
    assert ended(channel).code in {0, 1}
    channel.close()


def test_a_child_whose_call_fails_ends(process):
    table = Table()
    shared = process.kind == "program"
    table.clone(SHARED if shared else WAIT, STACK - 4096 if shared else 0)
    table.call("chdir", b"/no/such")
    table.call("execve", b"/bin/true", table.texts([b"true"]), table.texts([]))
    table.tail()
    mine, theirs = messages.pair()
    with theirs:
        hands.send(process.end, table.message(~0), [theirs.fileno()])
    told = table.results(mine.recv(100))
    assert told[0] > 0
    assert told[1:] == [-errno.ENOENT, None]
    assert ended(mine).code == 127
    mine.close()


@pytest.mark.parametrize(
    ("programs", "code"),
    [
        ((b"/no/such",), 127),
        ((b"/etc/passwd/x", b"/no/such"), 127),
        ((b"/no/such", b"/etc/passwd", b"/nor/this"), 126),
        ((b"/etc",), 126),
    ],
)
def test_a_child_without_a_program_ends_as_a_shell_has_it(process, programs, code):
    table = Table()
    table.call("fchdir", 999, may=(errno.EBADF,))  # process 1's own failures are nothing to it
    shared = process.kind == "program"
    table.clone(SHARED if shared else WAIT, STACK - 4096 if shared else 0)
    for name in programs:
        table.call("execve", name, table.texts([b"x"]), table.texts([]), may=None)
    table.tail()
    mine, theirs = messages.pair()
    with theirs:
        hands.send(process.end, table.message(~0), [theirs.fileno()])
    hands.answer(mine, table)
    assert ended(mine).code == code
    mine.close()


def test_of_a_silent_command_the_end_is_told_alone(process):
    shared = process.kind == "program"

    def told(program):
        table = Table()
        table.clone(SHARED if shared else WAIT, STACK - 4096 if shared else 0, marks=SILENT)
        words = table.texts([b"sh", b"-c", b"exit 6"])
        table.call("execve", program, words, table.texts([]), may=None)
        table.tail()
        mine, theirs = messages.pair()
        with theirs:
            hands.send(process.end, table.message(~0), [theirs.fileno()])
        with mine:
            mine.settimeout(10)
            return [mine.recv(100) for _ in range(3)]

    end, *rest = told(b"/bin/sh")
    assert End.read(end).code == 6
    assert rest == [b"", b""]
    answer, end, rest = told(b"/no/such")
    assert struct.unpack("=2q", answer)[1] == -errno.ENOENT
    assert End.read(end).code == 127
    assert rest == b""


def test_no_child_means_no_channel(process):
    before = process.descriptors()
    table = Table()
    table.clone(1 << 63, 0)
    table.call("chdir", b"/no/such")
    table.tail()
    table.call("fcntl", CHANNEL, fcntl.F_GETFD)
    for _ in range(3):
        with pytest.raises(Failed, match="clone3"):
            hands.run(process.end, table)
    mine, theirs = messages.pair()
    with mine, theirs:
        hands.send(process.end, table.message(~0), [theirs.fileno()])
        told = table.results(mine.recv(100))
    assert told[0] < 0
    assert told[1:] == [None, 0], "what comes after a child is done"
    assert soon(lambda: process.descriptors() == before)


def test_orphans_are_reaped(process):
    table = Table()
    table.call("prctl", linux.PR_SET_CHILD_SUBREAPER, 1)
    process.tell(table)
    channel, _, reader = process.command("(sleep 0.1 &) ; exit 0")
    assert ended(channel).code == 0
    read(reader)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert soon(lambda: not children.read_text().split())
    channel.close()


def test_it_ends_with_its_channel(process):
    process.end.close()
    assert process.status() == 0


@pytest.mark.parametrize(("script", "code"), [("exit 5", 5), ("kill -KILL $$", 137)])
def test_a_main_process_is_what_it_lives_for(process, script, code):
    channel, _, reader = process.command(f"sleep 0.2; {script}", marks=MAIN)
    process.end.close()
    assert process.status() == code
    channel.close()
    os.close(reader)


def test_signals_go_to_the_main_process(process):
    script = "trap 'echo heard; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    channel, _, reader = process.command(script, marks=MAIN)
    process.end.close()
    assert os.read(reader, 100) == b"ready\n"
    os.kill(process.pid, signal.SIGUSR1)
    assert process.status() == 3
    assert read(reader) == b"heard\n"
    channel.close()


def test_signals_are_nothing_without_one(process):
    os.kill(process.pid, signal.SIGTERM)
    table = Table()
    table.call("setsid", may=(errno.EPERM,))
    process.tell(table)
    channel, _, reader = process.command("exit 0")
    assert ended(channel).code == 0
    channel.close()
    os.close(reader)


def test_the_memory_of_the_program_is_small():
    if not program.is_there():
        pytest.skip("there is no program for this machine")
    process = Process("program")
    try:
        channel, _, reader = process.command("exit 0")
        ended(channel)
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        assert int(fields["VmRSS"].split()[0]) < 200  # KiB; a Python has 2,000 of its own
        channel.close()
        os.close(reader)
    finally:
        process.end.close()
        assert process.status() == 0


def test_an_argument_may_lie_anywhere(process, tmp_path):
    """Descriptors that a call writes to memory, as pipe2(2) does."""
    table = Table()
    pair = table.place(bytes(8))
    table.call("pipe2", pair, os.O_CLOEXEC)
    table.call("write", At(pair + 4), b"through", 7)
    table.call("read", At(pair), BULK, 7)
    file = table.call("openat", HERE, os.fsencode(tmp_path / "f"), os.O_CREAT | os.O_WRONLY, 0o600)
    table.call("write", file, BULK, 7)
    for one in (file, At(pair), At(pair + 4)):
        table.call("close", one)
    process.tell(table)
    assert (tmp_path / "f").read_bytes() == b"through"


def test_a_table_that_is_too_long_is_refused():
    table = Table()
    table.place(bytes(1 << 20))
    with pytest.raises(OSError, match="too long"):
        table.message(NOBODY)
    assert struct.calcsize("=II6Q") == 56
