"""One command in a sandbox: its words, its streams, its exit status."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.run.conftest import cgroups_of, wait_for

UNDECODED = ("utf-8", "surrogateescape")


def test_the_words_arrive_as_they_are(cli, image, clean):
    words = ["a  b", "", 'say "x"', "it's", "é ü ☃", "$HOME", "*", "tab\there", "new\nline", "--"]
    words += ["--help", "-v", "\\"]
    done = cli("run", "--rm", image, "--", "printf", "[%s]", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"[{word}]" for word in words)


def test_only_one_pair_of_dashes_is_ours(cli, image):
    assert cli("run", "--rm", image, "--", "--", "x").returncode == 127  # the command is `--`
    assert cli.good("run", "--rm", "--", image, "echo", "-n", "--") == "--"


def test_without_a_command_the_image_has_one(cli, image):
    assert cli.good("run", "--rm", "-i", image, input=b"echo from $FROM\n") == "from image\n"


def test_stdout_and_stderr_are_apart(cli, image):
    done = cli("run", "--rm", image, "sh", "-c", "echo out; echo err >&2; echo out2")
    assert (done.stdout, done.stderr, done.returncode) == ("out\nout2\n", "err\n", 0)


def test_one_stream_keeps_its_order(cli, image, tmp_path):
    script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {i}\nerr {i}\n" for i in range(1, 6))
    done = cli("run", "--rm", image, "sh", "-c", script, stderr=subprocess.STDOUT)
    assert done.stdout == expected
    with (tmp_path / "log").open("wb") as log:
        cli("run", "--rm", image, "sh", "-c", script, stdout=log, stderr=log)
        log.write(b"after\n")
    assert (tmp_path / "log").read_text() == expected + "after\n"


def test_two_streams_into_two_files(cli, image, tmp_path):
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done"
    with (tmp_path / "o").open("wb") as out, (tmp_path / "e").open("ab") as err:
        cli("run", "--rm", image, "sh", "-c", script, stdout=out, stderr=err)
    assert (tmp_path / "o").read_text() == "".join(f"out {i}\n" for i in range(1, 10))
    assert (tmp_path / "e").read_text() == "".join(f"err {i}\n" for i in range(1, 10))


def test_every_byte_goes_in_and_out(cli, image, tmp_path):
    data = os.urandom(3_000_000) + bytes(range(256))
    given = tmp_path / "in"
    given.write_bytes(data)
    with given.open("rb") as source, (tmp_path / "out").open("wb") as out:
        assert cli("run", "--rm", "-i", image, "cat", stdin=source, stdout=out).returncode == 0
    assert (tmp_path / "out").read_bytes() == data
    with cli.start("run", "--rm", "-i", image, "cat", stdin=subprocess.PIPE,
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        out, _ = process.communicate(data, 60)
    assert out == data


def test_without_i_the_input_is_at_its_end(cli, image):
    assert cli.good("run", "--rm", image, "cat", input=b"not for it\n") == ""


def test_a_reader_that_goes_away_ends_it(cli, image, clean):
    with cli.start("run", "--rm", image, "yes", stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(30) in {1, 141}  # as `yes` ends itself, or by SIGPIPE


def test_closed_streams(cli, image):
    words = cli.command("run", "--rm", image, "sh", "-c", "echo x; echo y >&2; exit 3")
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], env=cli.env,
                          cwd=cli.folder, check=False)  # fmt: skip
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["/etc"], 126),
        (["/etc/plain"], 126),
        (["no-such-command"], 127),
        (["/bin/no-such-command"], 127),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
    ],
)
@pytest.mark.parametrize("init", ["--init", "--no-init"])
def test_exit_status(cli, image, clean, *, command, status, init):
    if init == "--no-init" and "kill" in command[-1]:
        pytest.skip("process 1 ignores its own signals")
    done = cli("run", "--rm", init, image, *command)
    assert done.returncode == status
    if status in {126, 127}:
        assert done.stderr.startswith("pytest-sandbox: ")
        assert done.stderr.count("\n") == 1
        assert repr(command[0]) in done.stderr
    else:
        assert done.stderr == ""


def test_timeout_where_nobody_reads(cli, image, clean):
    """It is over soon, though its output is in everybody's way; a slow reader gets all of it."""
    with cli.start("run", "--rm", "--timeout", "1", image, "yes", stdout=subprocess.PIPE) as run:
        assert run.wait(9) == 124
    script = "head -c 300000 /dev/zero; exec sleep 1000"
    with cli.start("run", "--rm", "--timeout", "1", image, "sh", "-c", script,
                   stdout=subprocess.PIPE) as run:  # fmt: skip
        data = b""
        while piece := os.read(run.stdout.fileno(), 20000):
            time.sleep(0.1)
            data += piece
        assert (len(data), run.wait(9)) == (300000, 124)


def test_timeout(cli, image, clean):
    script = "trap '' TERM INT; echo begun; sleep 1000"
    done = cli("run", "--rm", "--timeout", "0.5", image, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (124, "begun\n", "")


def test_what_is_not_the_commands_fault_is_125_in_one_line(cli, image, clean):
    for words in (
        [image.replace("tiny", "nothing"), "true"],
        ["-u", "evil\x1b[31m\nuser", image, "true"],
        ["--pull", "never", image.replace(":1", ":2"), "true"],
        ["--platform", "linux/s390x", image, "true"],
        ["--read-only", "--tmpfs", "/proc/x", image, "true"],
        ["--memory", "1k", image, "true"],
        ["--memory", "9999999t", image, "true"],
        ["--pids", "99999999999", image, "true"],
        ["-w", "/etc/plain", image, "true"],
        ["-v", f"{cli.folder}:/etc/plain", image, "true"],
    ):
        done = cli("run", "--rm", "-q", *words)
        if words[0] == "--read-only":
            assert done.returncode == 2, done.stderr
        else:
            assert done.returncode == 125, (words, done.stderr)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("pytest-sandbox: ")
        assert "\x1b" not in done.stderr
        assert "next: " in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nope"], "--nope"),
        (["--memory", "much"], "--memory 'much' is no size"),
        (["--cpus", "-1"], "--cpus '-1'"),
        (["--pids", "1.5"], "--pids '1.5'"),
        (["--timeout", "nan"], "--timeout 'nan'"),
        (["-p", "80", "--network", "none"], "--network none has none"),
        (["-p", "80", "--network", "host"], "--network host"),
        (["-p", "http"], "-p 'http'"),
        (["-v", "/tmp"], "-v '/tmp' is no mount"),
        (["-v", "./missing:/mnt"], "does not exist"),
        (["-v", "/tmp:mnt"], "not absolute"),
        (["-v", "/tmp:/dev"], "has no devices"),
        (["-v", "/tmp:/dev/null"], "makes /dev/null itself"),
        (["-w", "relative"], "not absolute"),
        (["--name", "no/name"], "'no/name' is no name"),
        (["--network", "wifi"], "wifi"),
        (["--pull", "sometimes"], "sometimes"),
        (["--stop-signal", "NOPE"], "'NOPE' is no signal"),
        (["--security-opt", "seccomp=unconfined"], "not known"),
        (["--platform", "dos/8086"], "is no platform"),
        (["-t"], "terminal"),
        (["--env-file", "missing"], "--env-file missing"),
    ],
)
def test_a_wrong_call_is_2(cli, image, words, said):
    done = cli("run", *words, image, "true")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stdout == ""


def test_where_there_is_no_current_folder(cli, image, clean):
    words = [*cli.command("run", "--rm"), image, "echo", "fine"]
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    told = subprocess.run(
        ["sh", "-c", script, str(cli.folder / "gone"), *words], env=cli.env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (0, "fine\n"), told.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the store read-only")
def test_a_store_that_cannot_be_written(cli, image, clean):
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    for words in (["run", "--rm", image, "true"], ["image", "verify"]):
        told = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, str(cli.data), *cli.command(*words)],
            env=cli.env, cwd=cli.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == (125 if words[0] == "run" else 1)
        assert told.stderr.count("\n") == 1
        assert "read-only; next: set PYTEST_SANDBOX_DATA" in told.stderr


def test_a_timeout_beyond_all_clocks(cli, image, clean):
    assert cli.good("run", "--rm", "--timeout", "1e14", image, "echo", "fine") == "fine\n"
    identity = cli.good("run", "-d", "--timeout", "1e14", image, "sh", "-c", "exit 3").strip()
    assert cli.good("wait", identity) == "3\n"
    cli.good("rm", identity)


def test_a_wrong_reference_is_2(cli):
    done = cli("run", "UPPER CASE", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no image reference" in done.stderr
    assert cli("run").returncode == 2
    assert cli("exec", "name").returncode == 2


def test_environment(cli, image):
    (cli.folder / "vars").write_text("# a comment\nFILE=from  file\nBOTH=file\n\n")
    cli.env["FROM_HOST"] = "host value"
    words = ["--env-file", "vars", "-e", "BOTH=option", "-e", "FROM_HOST", "-e", "NOT_HERE"]
    script = 'echo "$FILE|$BOTH|$FROM_HOST|${NOT_HERE-unset}|$FROM|${FROM_X-unset}|$HOME"'
    found = cli.good("run", "--rm", *words, "-e", "FROM_X=a=b  c", image, "sh", "-c", script)
    assert found == "from  file|option|host value|unset|image|a=b  c|/root\n"


def test_user_folder_hostname_entrypoint(cli, image):
    script = "id -u; id -g; pwd; hostname; echo $HOME"
    words = ["-u", "app", "-w", "/var/made/here", "--hostname", "box"]
    found = cli.good("run", "--rm", *words, image, "sh", "-c", script)
    assert found.split() == ["1000", "1000", "/var/made/here", "box", "/home"]
    assert cli.good("run", "--rm", "--entrypoint", "echo", image, "a", "", "b") == "a  b\n"
    assert cli.good("run", "--rm", "--entrypoint", "", image, "echo", "x") == "x\n"


def test_what_a_sandbox_may_do(cli, image):
    script = "grep NoNewPrivs /proc/self/status; touch /x 2>&- || echo no; touch /m/x; ls /m"
    words = ["--read-only", "--tmpfs", "/m:size=1m", "--security-opt", "no-new-privileges"]
    found = cli.good("run", "--rm", *words, image, "sh", "-c", script)
    assert found.split() == ["NoNewPrivs:", "1", "no", "x"]
    found = cli.good("run", "--rm", image, "grep", "NoNewPrivs", "/proc/self/status")
    assert found.split() == ["NoNewPrivs:", "0"]
    full = cli("run", "--rm", "--tmpfs", "/m:size=1m", image,
               "dd", "if=/dev/zero", "of=/m/f", "bs=2M", "count=1")  # fmt: skip
    assert full.returncode == 1
    assert "No space left" in full.stderr


def test_volumes(cli, image, clean):
    folder = cli.folder / "shared"
    folder.mkdir(mode=0o700)
    (folder / "given").write_text("from the host\n")
    if cli.name == "user":
        os.chown(folder, *cli.ids)
        os.chown(folder / "given", *cli.ids)
    script = "cat /data/given; id -u; echo made > /data/made; stat -c %u /data/made"
    found = cli.good("run", "--rm", "-v", "./shared:/data", image, "sh", "-c", script)
    assert found == "from the host\n0\n0\n"
    made = folder / "made"
    assert made.read_text() == "made\n"
    assert made.stat().st_uid == folder.stat().st_uid  # root inside acts as the caller
    done = cli("run", "--rm", "-v", f"{folder}:/data:ro", image, "touch", "/data/no")
    assert done.returncode == 1
    assert "Read-only" in done.stderr
    found = cli.good("run", "--rm", "-v", "shared/given:/etc/one:ro", image, "cat", "/etc/one")
    assert found == "from the host\n"
    (folder / "tool").write_text("#!/bin/sh\necho tool $1\n")
    (folder / "tool").chmod(0o755)
    assert cli.good("run", "--rm", "-v", "./shared:/opt", image, "/opt/tool", "x") == "tool x\n"
    assert cli("run", "--rm", "-v", "./shared:/opt", image, "/opt/none").returncode == 127


def test_limits_are_set_or_refused(cli, image, clean):
    words = ["--memory", "64m", "--cpus", "0.5", "--pids", "30"]
    script = "sleep 0.2"
    done = cli("run", "--rm", *words, image, "sh", "-c", script)
    if done.returncode == 0:
        assert done.stderr == ""
        eat = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
        identity = cli.good("run", "-d", "--memory", "32m", image, *eat).strip()
        assert cli.good("wait", identity) == "137\n"
        assert cli.look(identity)["reason"] == "memory"
        cli.good("rm", identity)
        assert cli("run", "--rm", "--memory", "90m", image, *eat).returncode == 0
        many = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done"
        assert cli("run", "--rm", "--pids", "5", image, "sh", "-c", many).returncode != 0
        return
    assert done.returncode == 125
    assert "--memory and --cpus and --pids cannot be set" in done.stderr
    assert "controller memory and cpu and pids" in done.stderr
    assert "--weak-limits" in done.stderr
    assert done.stderr.count("\n") == 1
    assert cli("run", "--rm", "--weak-limits", *words, image, "sh", "-c", script).returncode == 0
    many = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done"
    weak = cli("run", "--rm", "--weak-limits", "--pids", "5", image, "sh", "-c", many)
    assert weak.returncode != 0


def test_pull_policies(cli, image, registry, clean):
    assert cli.good("run", "--rm", "--pull", "never", image, "echo", "x") == "x\n"
    done = cli("run", "--rm", "--pull", "always", image, "echo", "x")
    assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
    new = image.replace("tiny:1", "tiny@sha256:" + "0" * 64)
    done = cli("run", "--rm", new, "true")
    assert done.returncode == 125
    gone = image.replace(registry.host.rpartition(":")[2], "1")
    assert cli("run", "--rm", gone, "true").returncode == 125


def test_an_ended_one_stays_until_it_is_removed(cli, image):
    done = cli("run", "--name", "kept", image, "sh", "-c", "exit 4")
    assert done.returncode == 4
    assert "kept" not in cli.good("ps")
    assert "exited (4)" in cli.good("ps", "-a")
    again = cli("run", "--rm", "--name", "kept", image, "true")
    assert again.returncode == 125
    assert "the name kept is used by the ended sandbox" in again.stderr
    assert "pytest-sandbox rm kept" in again.stderr
    logs = cli("logs", "kept")
    assert logs.returncode == 1
    assert "started in the foreground" in logs.stderr
    assert cli.good("rm", "kept") == "kept\n"
    assert cli.good("run", "--rm", "--name", "kept", image, "echo", "x") == "x\n"
    cli.nothing_left()


def test_no_daemon_and_nothing_left(cli, image, clean):
    """The process tree of a run, and what there is of it afterwards."""
    seen = "sh -c echo ready; sleep 7117"
    with cli.start("run", "--rm", "--name", "tree", image, *seen.split(" ", 2),
                   stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        found = cli.look("tree")
        tree = _below(process.pid)
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in tree}
        assert names <= {"sandbox-keeper", ".sandbox-init", "tini-static", "sh", "sleep"}, names
        assert len(tree) == 4
        assert found["supervisor"] in tree
        assert (cgroups_of(found["id"]) == []) == found["rootless"]
        process.terminate()
        assert process.wait(20) == 143
    assert not [pid for pid in tree if Path(f"/proc/{pid}").exists()]
    assert cgroups_of(found["id"]) == []
    assert not Path(found["room"]).exists()


def _below(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        for child in map(int, children):
            found += [child, *_below(child)]
    return found


def test_the_first_example(cli, debian, clean):
    done = cli("run", "--rm", "-q", debian, "--", "sh", "-c", 'echo "a  b"; exit 7')
    assert (done.returncode, done.stdout, done.stderr) == (7, "a  b\n", "")
    done = cli("run", "--rm", debian, "--", "sh", "-c", 'echo "a  b"; exit 7')
    assert (done.returncode, done.stdout, done.stderr) == (7, "a  b\n", "")
    cli.nothing_left()
    wait_for(lambda: not [pid for pid in cli.pids if Path(f"/proc/{pid}").exists()])


def test_words_that_are_no_text(cli, image, clean):
    """Bytes that are no UTF-8 reach the command; what no shell can spell is refused."""
    odd = b"a\xff'b"
    assert cli.good("run", "--rm", image, "printf", "%s", odd).encode(*UNDECODED) == odd
    entrypoint = cli.good("run", "--rm", "--entrypoint", "echo", image, odd)
    assert entrypoint.encode(*UNDECODED) == odd + b"\n"
    identity = cli.good("run", "-d", "--rm", image, "sleep", "1000").strip()
    assert cli.good("exec", identity, "printf", "%s", odd).encode(*UNDECODED) == odd
    for words in (("exec", "-e", b"A=\xff", identity), ("run", "--rm", "-w", b"/\xff", image)):
        done = cli(*words, "true")
        assert done.returncode == 125
        assert done.stderr.count("\n") == 1
        assert "UTF-8" in done.stderr
    cli.good("rm", "-f", identity)
