"""Signals of a run, and what is left when it is killed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.run.conftest import cgroups_of, processes, wait_for
from tests.run.test_terminal import read_until


def trap(name):
    return f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.02; done"


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"])
def test_a_signal_reaches_the_process(cli, image, clean, name):
    with cli.start("run", "--rm", image, "sh", "-c", trap(name), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.stdout.read() == f"got {name}\n".encode()
        assert process.wait(20) == 9


def test_an_unhandled_signal_ends_it(cli, image, clean):
    with cli.start("run", "--rm", image, "sh", "-c", "echo ready; exec sleep 1000",
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(20) == 143


def test_signals_that_the_caller_blocks_are_not_blocked_inside(cli, image, clean):
    def block():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP})

    seen = cli.good("run", "--rm", image, "grep", "SigBlk", "/proc/self/status", preexec_fn=block)
    assert int(seen.split()[1], 16) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a real-time process")
def test_a_caller_in_real_time_is_not_followed(cli, image, clean):
    def become():
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    words = ["run", "--rm", "--cpus", "1"] if cli.name == "self" else ["run", "--rm"]
    assert cli.good(*words, image, "echo", "fine", preexec_fn=become) == "fine\n"


def test_a_signal_reaches_a_command_of_exec(cli, image):
    identity = cli.good("run", "-d", "--rm", image, "sleep", "1000").strip()
    with cli.start("exec", identity, "sh", "-c", trap("INT"), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"got INT\n"
        assert process.wait(20) == 9
    cli.good("rm", "-f", identity)


def test_ctrl_c_on_a_terminal_without_t(cli, image, clean):
    """The terminal's own signal, to us and what we started; the sandbox has no terminal."""
    ours, theirs = pty.openpty()
    script = "test -t 0 || test -t 1 || echo no terminal; sleep 1000"
    process = cli.begin("run", "--rm", "-i", image, "sh", "-c", script, stdin=theirs, stdout=theirs,
                        stderr=theirs, preexec_fn=lambda: _own_terminal(theirs))  # fmt: skip
    try:
        assert b"no terminal" in read_until(ours, b"no terminal")
        os.write(ours, b"\x03")
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def _own_terminal(descriptor):
    import fcntl
    import termios

    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("init", ["--init", "--no-init"])
def test_who_ignores_term_is_killed_after_the_grace_time(cli, image, clean, init):
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    identity = cli.good("run", "-d", init, image, "sh", "-c", script).strip()
    wait_for(lambda: cli.good("logs", identity) == "ready\n")
    began = time.monotonic()
    assert cli.good("stop", "-t", "1", identity) == f"{identity[:12]}\n"
    assert time.monotonic() - began >= 1
    assert cli.good("wait", identity) == "137\n"
    cli.good("rm", identity)


def test_process_1_without_a_handler(cli, image, clean):
    """As process 1 `sleep` never sees TERM; the init passes it on."""
    identity = cli.good("run", "-d", image, "sleep", "1000").strip()
    began = time.monotonic()
    cli.good("stop", "-t", "60", identity)
    assert time.monotonic() - began < 30
    assert cli.good("wait", identity) == "143\n"
    cli.good("rm", identity)
    identity = cli.good("run", "-d", "--no-init", image, "sleep", "1000").strip()
    cli.good("stop", "-t", "0.2", identity)
    assert cli.good("wait", identity) == "137\n"
    cli.good("rm", identity)


def test_stop_signal(cli, image):
    script = "trap 'exit 5' USR1; trap '' TERM; echo ready; while :; do sleep 0.02; done"
    words = ["--stop-signal", "USR1", image, "sh", "-c", script]
    identity = cli.good("run", "-d", *words).strip()
    wait_for(lambda: cli.good("logs", identity) == "ready\n")
    cli.good("stop", identity)
    assert cli.good("wait", identity) == "5\n"
    cli.good("rm", identity)


@pytest.mark.parametrize("init", ["--init", "--no-init"])
def test_sigkill_of_the_command(cli, image, clean, init):
    """Its processes are gone at once, and everything else without any help."""
    seen = f"7{os.getpid()}{len(init)}"
    with cli.start("run", init, image, "sh", "-c", f"echo ready; sleep {seen}; true",
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        assert processes(f"sleep {seen}")
        process.kill()
        process.wait()
        wait_for(lambda: not processes(f"sleep {seen}"), 3)
    cli.nothing_left(5)
    assert cli.good("ps", "-aq") == ""


@pytest.mark.parametrize("after", ["run", "ps"])
def test_sigkill_of_everything(cli, image, clean, after):
    """With its supervisor killed too, the next `run` or `ps` clears away what is left."""
    seen = f"8{os.getpid()}{len(after)}"
    with cli.start("run", "--name", "lost", image, "sh", "-c", f"echo ready; sleep {seen}; true",
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        found = cli.look("lost")
        os.kill(found["supervisor"], signal.SIGSTOP)  # neither of them may clear anything away
        process.kill()
        os.kill(found["supervisor"], signal.SIGKILL)
        process.wait()
    wait_for(lambda: not processes(f"sleep {seen}"), 3)
    assert cli.left()
    if after == "run":
        cli.good("run", "--rm", "--name", "lost", image, "true")
    else:
        assert "lost" not in cli.good("ps", "-a")
    assert cgroups_of(found["id"]) == []
    assert not Path(found["room"]).exists()


def test_sigkill_of_the_supervisor(cli, image, clean):
    with cli.start("run", "--rm", "--name", "orphan", image, "sh", "-c", "echo ready; sleep 1000",
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        os.kill(cli.look("orphan")["supervisor"], signal.SIGKILL)
        assert process.wait(20) == 125
        assert b"the supervisor of the sandbox is gone" in process.stderr.read()


def test_a_detached_one_without_its_supervisor_is_lost(cli, image, clean):
    seen = f"9{os.getpid()}"
    words = ["--no-init", image, "sleep", seen]
    identity = cli.good("run", "-d", *words).strip()
    os.kill(cli.look(identity)["supervisor"], signal.SIGKILL)
    assert cli.good("wait", identity) == "137\n"
    found = json.loads(cli.good("ps", "-a", "--json"))
    assert (found["id"], found["status"], found["reason"]) == (identity, "exited", "lost")
    wait_for(lambda: not processes(f"sleep {seen}"), 3)
    assert cgroups_of(identity) == []
    cli.good("rm", identity)


def test_a_signal_while_it_pulls(cli, registry, image):
    """Nothing runs yet: it ends as the signal says."""
    slow = image.replace(registry.host.rpartition(":")[2], str(_silent()))
    process = cli.begin("run", "--rm", slow, "true", stderr=subprocess.PIPE)
    time.sleep(1)
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    cli.nothing_left(5)


def test_an_interrupt_while_it_unpacks(cli, debian, clean):
    """What unpacks is ended before its files are removed."""
    work = cli.data / "oci" / "tmp"
    cli("image", "rm", debian)  # another test may have pulled it
    for files in (1, 300, 1500):
        process = cli.begin("run", "--rm", "-q", debian, "true", stderr=subprocess.PIPE)

        def far_enough(least=files, process=process):
            assert process.poll() is None, process.communicate()[1]
            return sum(len(names) for _, _, names in os.walk(work)) >= least

        wait_for(far_enough, 60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, b"")
        cli.nothing_left(5)


def _silent():
    """A port that accepts and never answers."""
    import socket

    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(16)
    _SERVERS.append(server)
    return server.getsockname()[1]


_SERVERS = []


@pytest.fixture(autouse=True)
def _close_servers():
    yield
    while _SERVERS:
        _SERVERS.pop().close()
