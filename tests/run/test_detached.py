"""Sandboxes that go on without the command that started them, seen from other processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.run.conftest import cgroups_of, processes, wait_for
from tests.run.test_terminal import read_until


def test_a_life(cli, image, clean):
    script = "trap 'echo bye; exit 3' TERM; echo out; echo err >&2; while :; do sleep 0.02; done"
    identity = cli.good("run", "-d", "--name", "life", image, "sh", "-c", script).strip()
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert "up " in cli.good("ps")
    assert cli.good("ps", "-q", "--no-trunc") == f"{identity}\n"
    found = cli.look("life")
    assert (found["id"], found["status"], found["exit_code"]) == (identity, "running", None)
    assert found["image"].endswith("library/tiny:1")
    assert found["command"] == ["sh", "-c", script]
    wait_for(lambda: cli("logs", "life").stderr == "err\n")
    assert cli("logs", "life").stdout == "out\n"
    assert cli.good("exec", "life", "echo", "a  b") == "a  b\n"
    assert cli.good("stop", identity[:6]) == "life\n"
    assert cli.good("wait", "life") == "3\n"
    assert cli("logs", "life").stdout == "out\nbye\n"
    assert cli.good("ps") == cli.good("ps")
    assert "life" not in cli.good("ps")
    assert "exited (3)" in cli.good("ps", "-a")
    assert cli.look("life")["exit_code"] == 3
    assert not processes(identity)
    assert cgroups_of(identity) == []
    assert cli.good("rm", "life") == "life\n"
    assert cli("inspect", "life").returncode == 2


@pytest.mark.parametrize("status", [0, 7, 137])
def test_its_status_survives(cli, image, status):
    script = f"exit {status}" if status != 137 else "kill -9 $$"
    identity = cli.good("run", "-d", image, "sh", "-c", script).strip()
    assert cli.good("wait", identity) == f"{status}\n"
    assert cli.good("wait", identity) == f"{status}\n"
    assert cli.look(identity)["exit_code"] == status
    cli.good("rm", identity)


def test_auto_removal(cli, image, clean):
    identity = cli.good("run", "-d", "--rm", image, "sh", "-c", "sleep 0.5; exit 6").strip()
    with cli.start("wait", identity, stdout=subprocess.PIPE) as waiting:
        out, _ = waiting.communicate(timeout=30)
    assert out == b"6\n"
    cli.nothing_left(5)
    assert cli("wait", identity).returncode == 1
    assert f"there is no sandbox {identity!r}" in cli("logs", identity).stderr


def test_what_cannot_be_started(cli, image, clean):
    for command, status in (("nothing", 127), ("/etc", 126)):
        done = cli("run", "-d", image, command)
        assert (done.returncode, done.stdout) == (status, "")
        assert repr(command) in done.stderr
    assert cli("run", "-d", "-u", "nobody-here", image, "true").returncode == 125


def test_it_survives_a_hang_up(cli, image, clean):
    """The terminal that it was started on is closed, and its shell with it."""
    ours, theirs = pty.openpty()
    words = cli.command("run", "-d", "--name", "survivor", image, "sleep", "1000")
    shell = subprocess.Popen(
        ["sh", "-c", '"$@"; echo started; sleep 1000', "sh", *words], env=cli.env, cwd=cli.folder,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    assert b"started" in read_until(ours, b"started")
    os.killpg(shell.pid, signal.SIGHUP)
    os.close(ours)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    time.sleep(0.3)
    found = cli.look("survivor")
    assert found["status"] == "running"
    supervisor = Path(f"/proc/{found['supervisor']}/stat").read_text().rpartition(")")[2].split()
    assert supervisor[3] == str(found["supervisor"])  # a session of its own
    assert cli.good("exec", "survivor", "echo", "here") == "here\n"
    assert cli.good("rm", "-f", "survivor") == "survivor\n"


def test_logs_follow(cli, image, clean):
    script = "for i in 1 2 3 4 5; do echo $i; echo e$i >&2; sleep 0.2; done; printf end; exit 1"
    identity = cli.good("run", "-d", image, "sh", "-c", script).strip()
    done = cli("logs", "-f", identity)
    assert done.returncode == 0
    assert done.stdout == "1\n2\n3\n4\n5\nend"
    assert done.stderr == "e1\ne2\ne3\ne4\ne5\n"
    assert cli("logs", "--tail", "1", identity).stdout + cli("logs", "--tail", "1", identity).stderr
    stamped = cli("logs", "-t", identity).stdout.splitlines()
    assert len(stamped) == 6
    assert all(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in stamped)
    cli.good("rm", identity)


def test_logs_miss_nothing(cli, image, clean):
    """What it wrote right before its end is there as soon as its end is told."""
    script = "seq 1 20000; echo last >&2"
    expected = "".join(f"{i}\n" for i in range(1, 20001))
    for _ in range(3):
        identity = cli.good("run", "-d", image, "sh", "-c", script).strip()
        cli.good("wait", identity)
        done = cli("logs", identity)
        assert (done.stdout, done.stderr) == (expected, "last\n")
        cli.good("rm", identity)


def test_exec(cli, image, clean):
    cli.good("run", "-d", "--name", "box", "-e", "ONE=1", "-w", "/var", image, "sleep", "1000")
    assert cli.good("exec", "box", "--", "printf", "[%s]", "a  b", "", "--") == "[a  b][][--]"
    script = 'echo "$ONE $TWO"; id -u; pwd; echo $FROM'
    found = cli.good("exec", "-e", "TWO=2  2", "-u", "app", "-w", "/tmp", "box", "sh", "-c", script)
    assert found == "1 2  2\n1000\n/tmp\nimage\n"
    assert cli.good("exec", "box", "pwd") == "/var\n"
    data = os.urandom(300_000)
    with cli.start("exec", "-i", "box", "cat", stdin=subprocess.PIPE,
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        out, _ = process.communicate(data, 60)
    assert out == data
    assert cli.good("exec", "box", "cat", input=b"not for it") == ""
    done = cli("exec", "box", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    assert cli("exec", "box", "sh", "-c", "kill -9 $$").returncode == 137
    assert cli("exec", "box", "/etc").returncode == 126
    assert cli("exec", "box", "nothing").returncode == 127
    for words in (["-u", "nobody-here"], ["-w", "/no/where"]):
        done = cli("exec", *words, "box", "true")
        assert done.returncode == 125
        assert words[1] in done.stderr
        assert done.stderr.count("\n") == 1
    began = time.monotonic()
    assert cli.good("exec", "box", "sh", "-c", "sleep 1000 & echo x") == "x\n"
    assert time.monotonic() - began < 60  # a child that holds the output delays nothing
    with cli.start("exec", "box", "sh", "-c", "echo x; exec sleep 61616",
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"x\n"
        process.kill()
        process.wait()
    wait_for(lambda: not processes("sleep 61616"), 5)
    assert cli.good("exec", "box", "echo", "still here") == "still here\n"
    cli.good("rm", "-f", "box")


def test_a_killed_sandbox_ends_its_exec(cli, image, clean):
    cli.good("run", "-d", "--rm", "--name", "short", image, "sleep", "1000")
    with cli.start("exec", "short", "sh", "-c", "echo x; sleep 1000",
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"x\n"
        assert cli.good("rm", "-f", "short") == "short\n"
        assert process.wait(20) in {125, 137}


def test_names_and_errors(cli, image, clean):
    cli.good("run", "-d", "--name", "first", image, "sleep", "1000")
    again = cli("run", "-d", "--name", "first", image, "true")
    assert again.returncode == 125
    assert "the name first is used by the running sandbox" in again.stderr
    assert "pytest-sandbox rm -f first" in again.stderr
    done = cli("rm", "first")
    assert done.returncode == 1
    assert "is running" in done.stderr
    for verb in (["stop"], ["kill"], ["rm"], ["rm", "-f"], ["wait"], ["logs"]):
        done = cli(*verb, "unknown")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("pytest-sandbox: there is no sandbox 'unknown'")
        assert done.stderr.count("\n") == 1
    assert cli("exec", "unknown", "true").returncode == 125
    cli.good("kill", "first")
    assert cli.good("wait", "first") == "137\n"
    done = cli("exec", "first", "true")
    assert done.returncode == 125
    assert "is not running: it ended with status 137" in done.stderr
    assert cli("kill", "first").returncode == 1
    assert cli.good("stop", "first") == "first\n"
    assert cli.good("rm", "first") == "first\n"


def test_kill(cli, image, clean):
    script = "trap 'echo got; exit 8' USR1; echo ready; while :; do sleep 0.02; done"
    identity = cli.good("run", "-d", image, "sh", "-c", script).strip()
    wait_for(lambda: cli.good("logs", identity) == "ready\n")
    assert cli.good("kill", "-s", "SIGUSR1", identity[:4]) == f"{identity[:12]}\n"
    assert cli.good("wait", identity) == "8\n"
    assert cli.good("logs", identity) == "ready\ngot\n"
    assert cli("kill", "-s", "NOPE", identity).returncode == 2
    cli.good("rm", identity)


def test_signals_at_once_are_not_lost(cli, image, clean):
    """It was started just now: the engine, or the init, may still be at it."""
    for _ in range(5):
        identity = cli.good("run", "-d", image, "sleep", "1000").strip()
        cli.good("kill", "-s", "TERM", identity)
        assert cli.good("wait", identity) == "143\n"
        cli.good("rm", identity)


def test_several_at_once(cli, image, clean):
    names = ["one", "two", "three"]
    for name in names:
        cli.good("run", "-d", "--name", name, image, "sleep", "1000")
    listed = [json.loads(line) for line in cli.good("ps", "--json").splitlines()]
    assert [one["name"] for one in listed] == ["three", "two", "one"]
    done = cli("stop", "one", "unknown", "two")
    assert (done.returncode, done.stdout) == (1, "one\ntwo\n")
    assert cli.good("wait", "one", "two") == "143\n143\n"
    assert cli.good("rm", "-f", *names) == "one\ntwo\nthree\n"


def test_of_two_at_once_one_gets_the_name(cli, image, clean):
    processes = [
        cli.begin("run", "-d", "--name", "wanted", image, "sleep", "1000",
                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]  # fmt: skip
    done = [process.communicate(timeout=60) for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0, 125, 125, 125]
    assert sum(b"the name wanted is used" in err for _, err in done) == 3
    cli.good("rm", "-f", "wanted")


def test_timeout(cli, image, clean):
    identity = cli.good("run", "-d", "--timeout", "0.5", image, "sleep", "1000").strip()
    assert cli.good("wait", identity) == "124\n"
    assert cli.look(identity)["reason"] == "timeout"
    cli.good("rm", identity)


def test_its_input_stays_open(cli, image, clean):
    identity = cli.good("run", "-d", "-i", image, "sh").strip()
    time.sleep(0.5)
    assert cli.look(identity)["status"] == "running"
    cli.good("rm", "-f", identity)
    identity = cli.good("run", "-d", image, "sh").strip()
    assert cli.good("wait", identity) == "0\n"
    cli.good("rm", identity)


def test_inspect_takes_files_for_recipes(cli, image, clean):
    cli.good("run", "-d", "--name", "thing", image, "sleep", "1000")
    (cli.folder / "thing.toml").write_text("no recipe")
    assert json.loads(cli.good("inspect", "thing"))["name"] == "thing"
    assert cli("inspect", "thing.toml").returncode == 1
    done = cli("inspect", "neither")
    assert done.returncode == 2
    assert "'neither' is no recipe file or folder, and no name or id of a sandbox" in done.stderr
    cli.good("rm", "-f", "thing")
