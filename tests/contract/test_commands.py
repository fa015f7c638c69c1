"""Commands: exit status, streams, bytes, input, environment, folder, user."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import MissingDirectory, UnknownUser

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.runtimes.base import Result, System


def sh(system: System, script: str, **keywords: object) -> Result:
    return system.run(["sh", "-c", script], **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [0, 1, 2, 42, 125, 126, 127, 255])
def test_exit_status_is_the_commands_own(system: System, status: int):
    result = sh(system, f"exit {status}")
    assert result.returncode == status
    assert result.stdout_bytes == result.stderr_bytes == b""
    assert result.ok == (status == 0)
    assert result.limit is None


def test_missing_command_is_127_and_stdout_stays_empty(system: System):
    result = system.run(["no-such-command-here"])
    assert result.returncode == 127
    assert result.stdout_bytes == b""
    assert "no-such-command-here" in result.stderr


def test_missing_path_is_127(system: System):
    result = system.run(["/no/such/command"])
    assert (result.returncode, result.stdout_bytes) == (127, b"")


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc"])
def test_what_cannot_be_executed_is_126(system: System, path: str):
    result = system.run([path])
    assert (result.returncode, result.stdout_bytes) == (126, b"")


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("INT", 2), ("SEGV", 11)])
def test_a_signal_is_128_plus_its_number(system: System, name: str, number: int):
    result = sh(system, f"kill -{name} $$; sleep 5")
    assert result.returncode == 128 + number
    assert result.limit is None


def test_no_signal_is_ignored_or_blocked(system: System):
    result = system.run(["grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"])
    # Podman's init leaves the three stop signals of a terminal blocked.
    masks = [int(line.split()[1], 16) & ~0x380000 for line in result.stdout.splitlines()]
    assert masks == [0, 0]


def test_streams_stay_apart(system: System):
    result = sh(system, "echo out; echo err >&2; echo out2")
    assert result.stdout == "out\nout2\n"
    assert result.stderr == "err\n"


def test_merge_keeps_the_order(system: System):
    result = sh(system, "for i in 1 2 3 4 5; do echo o$i; echo e$i >&2; done", merge=True)
    assert result.stdout.split() == [f"{k}{i}" for i in range(1, 6) for k in "oe"]
    assert result.stderr_bytes == b""


def test_bytes_are_kept_and_decode_with_surrogateescape(system: System):
    result = sh(system, r"printf '\000\001\377\200\n\r\n'; printf '\377' >&2")
    assert result.stdout_bytes == b"\x00\x01\xff\x80\n\r\n"
    assert result.stderr == "\udcff"
    assert result.stderr.encode("utf-8", "surrogateescape") == b"\xff"


def test_arguments_arrive_as_they_are(system: System):
    words = ["", " ", "a b", "'", "'\\''", '"', "$HOME", "`id`", "$(id)", "\\", "\n", "a\nb\n", "*"]
    words += ["-n", "--", "~", "#", ";", "&", "|", "{a,b}", "é", "日本", "\t", "\x01", "\x7f", "!"]
    result = system.run(["printf", "<%s>\\0", *words])
    assert result.stdout.split("\0")[:-1] == [f"<{word}>" for word in words]


def test_every_byte_goes_through_an_argument(system: System):
    every = bytes(range(1, 256))
    result = system.run(["printf", "%s", every.decode("utf-8", "surrogateescape")])
    assert result.stdout_bytes == every


def test_a_long_argument(system: System):
    word = "x'\"" * 40000
    result = system.run(["printf", "%s", word])
    assert result.stdout == word


def test_a_command_whose_name_is_odd(system: System):
    sh(system, "printf '#!/bin/sh\\necho odd $1\\n' >'/tmp/a=b c'; chmod +x '/tmp/a=b c'")
    assert system.run(["/tmp/a=b c", "x"]).stdout == "odd x\n"


def test_a_string_is_no_argv(system: System):
    with pytest.raises(TypeError, match=r"\['ls', '-l'\]"):
        system.run("ls -l")  # type: ignore[arg-type]


def test_an_empty_argv_and_a_nul_byte_are_errors(system: System):
    with pytest.raises(ValueError, match="empty"):
        system.run([])
    with pytest.raises(ValueError, match="NUL"):
        system.run(["echo", "a\0b"])
    with pytest.raises(ValueError, match="NUL"):
        system.run(["echo"], env={"A": "\0"})


def test_without_input_stdin_is_at_its_end(system: System):
    assert system.run(["cat"], timeout=5).stdout_bytes == b""
    assert sh(system, "read -r x; echo $?", timeout=5).stdout == "1\n"


@pytest.mark.parametrize("data", [b"", b"one\ntwo", b"\x00\xff" * 3, b"x" * (3 << 20)])
def test_input_arrives_whole(system: System, data: bytes):
    result = system.run(["sha256sum"], input=data, timeout=30)
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_input_that_nobody_reads(system: System):
    assert system.run(["true"], input=b"x" * (2 << 20), timeout=20).returncode == 0


def test_environment_is_the_images_and_the_specs_and_the_calls(system: System):
    lines = system.run(["env"], env={"ONE": "it's", "FOUR": "x\ny"}).stdout
    assert "FROM_SPEC=a b\n" in lines
    assert "ONE=it's\n" in lines
    assert "FOUR=x\ny\n" in lines
    assert "PATH=" in lines


def test_environment_is_clean(system: System):
    names = {line.partition("=")[0] for line in system.run(["env"]).stdout.splitlines()}
    # Podman adds two of its own.
    assert names - {"container", "TERM"} == {"PATH", "HOSTNAME", "HOME", "FROM_SPEC"}


def test_environment_of_one_command_is_gone_with_the_next(system: System):
    assert sh(system, "echo ${LEAK-none}", env={"LEAK": "1"}).stdout == "1\n"
    assert sh(system, "echo ${LEAK-none}").stdout == "none\n"


@pytest.mark.parametrize("name", ["a.b", "IFS", "OPTIND", "PS1", "x-y", "_pm", "PPID"])
def test_odd_names_of_variables(system: System, name: str):
    result = system.run(["env"], env={name: "some value"})
    assert f"{name}=some value\n" in result.stdout


def test_path_of_the_call_finds_the_command(system: System):
    sh(
        system,
        "mkdir -p /tmp/own; printf '#!/bin/sh\\necho mine\\n' >/tmp/own/mine; chmod +x /tmp/own/*",
    )
    assert system.run(["mine"], env={"PATH": "/tmp/own:/usr/bin:/bin"}).stdout == "mine\n"
    assert system.run(["mine"]).returncode == 127


def test_folder(system: System):
    assert system.run(["pwd"]).stdout == "/\n"
    assert system.run(["pwd"], cwd="/usr/share").stdout == "/usr/share\n"
    assert system.run(["pwd"], cwd="usr").stdout == "/usr\n"
    sh(system, "mkdir -p '/tmp/it'\\''s a dir'")
    assert system.run(["pwd"], cwd="/tmp/it's a dir").stdout == "/tmp/it's a dir\n"


@pytest.mark.parametrize("path", ["/no/such/folder", "/etc/passwd"])
def test_a_missing_folder_fails_by_name(system: System, path: str):
    with pytest.raises(MissingDirectory, match=path) as caught:
        system.run(["true"], cwd=path)
    assert isinstance(caught.value, FileNotFoundError)
    assert system.run(["true"]).ok


def test_user(system: System):
    assert system.run(["id", "-un"]).stdout == "root\n"
    assert system.run(["id", "-un"], user="nobody").stdout == "nobody\n"
    assert system.run(["id", "-u"], user="1234").stdout == "1234\n"


def test_an_unknown_user_fails_by_name(system: System):
    with pytest.raises(UnknownUser, match="nosuchuser"):
        system.run(["true"], user="nosuchuser")


def test_large_output_keeps_head_and_tail(system: System):
    result = sh(system, "seq 1 2000000; echo last; seq 1 400000 >&2")
    assert result.truncated
    assert result.stdout.startswith("1\n2\n3\n")
    assert result.stdout.endswith("2000000\nlast\n")
    assert 2 << 20 <= len(result.stdout_bytes) < (2 << 20) + 200
    assert "bytes dropped by pytest-sandbox" in result.stdout
    assert result.ok


def test_just_enough_output_is_whole(system: System):
    result = sh(system, "head -c 2097152 /dev/zero")
    assert result.stdout_bytes == b"\0" * (2 << 20)
    assert not result.truncated


def test_log_file_has_more(system: System, tmp_path: Path):
    path = tmp_path / "deep" / "log.txt"
    result = sh(system, "seq 1 600000; echo err >&2", log=path)
    assert result.log == path
    text = path.read_text()
    assert "300000\n" in text
    assert "err\n" in text
    assert system.run(["true"], log=tmp_path / "none").log is None


def test_a_background_child_does_not_delay(system: System):
    began = time.monotonic()
    result = sh(system, "(sleep 1; echo later) & echo now")
    took = time.monotonic() - began
    assert result.stdout.startswith("now\n")
    assert took < (0.9 if getattr(system, "fast", True) else 2.5)


def test_what_background_children_write_goes_to_the_log(system: System):
    if not getattr(system, "fast", True):
        pytest.skip("the engine ends the stream of an exec with its command")
    sh(system, "(sleep 0.2; echo from-behind) & ")
    deadline = time.monotonic() + 5
    while "from-behind" not in system.logs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "from-behind" in system.logs()


def test_commands_at_the_same_time(system: System):
    results: dict[int, Result] = {}

    def work(number: int) -> None:
        for turn in range(5):
            results[number * 10 + turn] = sh(
                system, f"sleep 0.05; echo {number}-{turn}; exit {number}"
            )

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 40
    for key, result in results.items():
        assert result.stdout == f"{key // 10}-{key % 10}\n"
        assert result.returncode == key // 10
    assert time.monotonic() - began < 30


def test_many_commands_leave_no_process(start: Callable[..., System]):
    system = start()
    for _ in range(60):
        assert system.run(["true"]).ok
    count = sh(system, "ls -d /proc/[0-9]* | wc -l").stdout
    assert int(count) <= 8


def test_a_command_may_kill_its_group(system: System):
    result = sh(system, "trap 'exit 7' TERM; kill 0; sleep 5")
    assert result.returncode == 7
    assert system.run(["echo", "alive"]).stdout == "alive\n"


def test_killing_the_parent_is_no_success(start: Callable[..., System]):
    system = start()
    result = sh(system, "kill -9 $PPID 2>/dev/null; sleep 0.3; exit 3")
    assert result.returncode != 0
    assert system.run(["echo", "alive"]).stdout == "alive\n"


def test_what_is_written_into_the_sandboxs_own_pipes_forges_nothing(start: Callable[..., System]):
    system = start()
    script = "for p in /dev/.sandbox/s* /proc/[0-9]*/fd/1; do printf '0 0 0 0 0 0' >$p; done"
    result = sh(system, script + " 2>/dev/null; exit 3", timeout=20)
    assert result.returncode == 3
    assert system.run(["echo", "usable"], timeout=5).stdout == "usable\n"


def test_a_shell_function_of_the_step_does_not_reach_the_next(system: System):
    sh(system, "cd /tmp; umask 077; set -e; alias ls=false; exit 1")
    assert sh(system, "umask; pwd").stdout.split() in (["0022", "/"], ["022", "/"])


def test_duration(system: System):
    assert 0.2 <= system.run(["sleep", "0.2"]).duration < 2


@pytest.mark.parametrize("user", ["nobody-here", "root:no-such-group", "-1", "99999999999"])
def test_users_that_cannot_be_are_told_by_name(system: System, user: str) -> None:
    with pytest.raises(UnknownUser, match=re.escape(user)):
        system.run(["id"], user=user)


def test_a_file_of_no_format_is_not_executable_for_another_user(system: System) -> None:
    system.run(["sh", "-c", "printf '\\177ELF0' > /srv/odd; chmod 755 /srv/odd"])
    result = system.run(["/srv/odd"], user="root")
    assert (result.returncode, result.stdout) == (126, "")
