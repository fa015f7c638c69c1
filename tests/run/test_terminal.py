"""A sandbox on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from tests.run.conftest import wait_for


def read_until(descriptor, text, seconds=20.0):
    """What a terminal shows until a text is there, or its end."""
    shown, until = b"", time.monotonic() + seconds
    while text not in shown and time.monotonic() < until:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
    return shown


class OnTerminal:
    """The command with a terminal of 33 x 77."""

    def __init__(self, cli, *words):
        self.ours, self.theirs = pty.openpty()
        self.resize(33, 77)
        self.before = termios.tcgetattr(self.theirs)
        self.process = cli.begin(
            *words, stdin=self.theirs, stdout=self.theirs, stderr=self.theirs,
            preexec_fn=lambda: fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )  # fmt: skip

    def resize(self, rows, columns):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text):
        found = read_until(self.ours, text)
        assert text in found, found
        return found

    def type(self, data):
        os.write(self.ours, data)

    def is_raw(self):
        return not termios.tcgetattr(self.theirs)[3] & termios.ICANON

    def is_as_before(self):
        return termios.tcgetattr(self.theirs) == self.before

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def on_terminal(cli):
    begun = []

    def begin(*words):
        begun.append(OnTerminal(cli, *words))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


SCRIPT = (
    "stty size; trap 'stty size; exit 4' WINCH; test -t 0 && test -t 1 && test -t 2 && tty; "
    "read line; echo got $line; while :; do sleep 0.02; done"
)


def test_a_terminal_with_resize_and_input(cli, image, clean, on_terminal):
    terminal = on_terminal("run", "--rm", "-it", image, "sh", "-c", SCRIPT)
    shown = terminal.until(b"/dev/")
    assert b"33 77" in shown
    assert terminal.is_raw()
    terminal.type(b"some  words\r")
    terminal.until(b"got some words\r\n")
    terminal.resize(50, 120)
    terminal.until(b"50 120")
    assert terminal.process.wait(20) == 4
    assert terminal.is_as_before()


def test_ctrl_c_is_typed(cli, image, clean, on_terminal):
    terminal = on_terminal("run", "--rm", "-it", image, "sh", "-c", "echo ready; cat; echo no")
    terminal.until(b"ready")
    wait_for(terminal.is_raw)
    terminal.type(b"\x03")
    assert terminal.process.wait(20) == 130
    assert terminal.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_mode_comes_back_whatever_happens(cli, image, clean, on_terminal, number):
    terminal = on_terminal("run", "--rm", "-it", image, "sh", "-c", "echo ready; sleep 1000")
    terminal.until(b"ready")
    wait_for(terminal.is_raw)
    terminal.process.send_signal(number)
    expected = -9 if number == signal.SIGKILL else 128 + number
    assert terminal.process.wait(20) == expected
    wait_for(terminal.is_as_before, 5)


def test_exec_on_a_terminal(cli, image, clean, on_terminal):
    identity = cli.good("run", "-d", "--rm", image, "sleep", "1000").strip()
    terminal = on_terminal("exec", "-it", identity, "sh", "-c", SCRIPT)
    assert b"33 77" in terminal.until(b"/dev/")
    terminal.type(b"x\r")
    terminal.until(b"got x")
    terminal.resize(20, 40)
    terminal.until(b"20 40")
    assert terminal.process.wait(20) == 4
    assert terminal.is_as_before()
    cli.good("rm", "-f", identity)


def test_a_terminal_of_a_detached_one(cli, image, clean):
    """It is there, and what is written to it is the log."""
    identity = cli.good("run", "-dit", image, "sh", "-c", "tty; stty size; echo e >&2").strip()
    assert cli.good("wait", identity) == "0\n"
    assert cli.good("logs", identity).split() == ["/dev/pts/0", "24", "80", "e"]
    cli.good("rm", identity)


@pytest.mark.parametrize("verb", ["run", "exec"])
@pytest.mark.parametrize("words", [["-t"], ["-i", "-t"]])
def test_without_a_terminal_it_fails_early(cli, image, clean, verb, words):
    first = ["--rm", *words, image] if verb == "run" else [*words, "nobody"]
    done = cli(verb, *first, "true")
    assert done.returncode == 2
    assert done.stderr.startswith("pytest-sandbox: -t needs a terminal (a tty)")
    assert done.stderr.count("\n") == 1


def test_a_pipe_as_input_is_no_terminal(cli, image):
    """With -i the terminal has to be the input's."""
    ours, theirs = pty.openpty()
    with contextlib.closing(os.fdopen(ours, "rb", 0)), contextlib.closing(os.fdopen(theirs)):
        done = cli("run", "--rm", "-it", image, "true", stdin=subprocess.PIPE, stdout=theirs)
    assert done.returncode == 2
    assert "standard input is not one" in done.stderr
