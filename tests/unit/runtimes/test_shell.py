"""The fast path's programs, run by the host's own shells where they are plain."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.runtimes import shell
from pytest_sandbox.runtimes.shell import Counters, Facts, Report, Streams

if TYPE_CHECKING:
    from pathlib import Path

SHELLS = [name for name in ("sh", "dash", "bash", "busybox") if shutil.which(name)]


def run(name: str, program: bytes) -> subprocess.CompletedProcess[bytes]:
    argv = [name, "sh"] if name == "busybox" else [name]
    return subprocess.run(argv, input=program, capture_output=True, check=False)


@pytest.mark.parametrize("name", SHELLS)
def test_every_byte_is_quoted(name: str):
    every = bytes(range(1, 256))
    found = run(name, b"printf %%s %s" % shell.quote(every))
    assert found.stdout == every


@pytest.mark.parametrize("word", ["plain", "-n", "a=b", "", "'", "''", "a'b'c", "\n", "~", "$(id)"])
@pytest.mark.parametrize("name", SHELLS)
def test_words(name: str, word: str):
    assert (
        run(name, b"printf '<%%s>' %s" % shell.quote(word.encode())).stdout == f"<{word}>".encode()
    )


def test_nul_is_an_error():
    with pytest.raises(ValueError, match="NUL"):
        shell.quote(b"a\0b")


@pytest.mark.parametrize("name", SHELLS)
def test_a_command_reports_its_status(name: str, tmp_path: Path):
    facts = Facts(pid=1, kind="plain" if name != "bash" else "bash", env="/usr/bin/env")
    out = tmp_path / "it's out"
    program = shell.command(
        "token",
        ["sh", "-c", 'echo "$ONE $0"; pwd; exit 3', "it's"],
        env={"ONE": "a 'b'\nc"},
        cwd="/usr",
        streams=Streams(str(out)),
        facts=facts,
    )
    found = run(name, program + b"echo after\n")
    assert found.stdout == b"\ntoken 3 0 0 0 0\nafter\n"
    assert out.read_text() == "a 'b'\nc it's\n/usr\n"


@pytest.mark.parametrize("name", SHELLS)
def test_a_missing_folder_is_reported(name: str, tmp_path: Path):
    program = shell.command(
        "token",
        ["touch", str(tmp_path / "ran")],
        env={},
        cwd="/no/such",
        streams=Streams("/dev/null"),
        facts=Facts(kind="plain"),
    )
    assert run(name, program).stdout == b"\ntoken D 0 0 0 0\n"
    assert not (tmp_path / "ran").exists()


def test_reports():
    assert shell.parse_report(b"t 0 1 2 3 4", "t") == Report(0, Counters(1, 2), Counters(3, 4))
    assert shell.parse_report(b"t D 0 0 0 0", "t") == Report(None, Counters(), Counters())
    for line in (b"", b"u 0 1 2 3 4", b"t 0", b"t x 0 0 0 0", b"t 0 0 0 0 0 0"):
        assert shell.parse_report(line, "t") is None


@pytest.mark.parametrize("name", SHELLS)
def test_the_probe(name: str):
    found = run(name, shell.probe() + b"\n")
    facts = shell.parse_probe(found.stdout.split(b"\n")[:-1], {"PATH": "/bin"})
    assert facts.pid > 1
    assert facts.kind == (
        "bash" if b"BASH" in run(name, b"echo ${BASH_VERSION:+BASH}").stdout else "plain"
    )
    # A busybox that prefers its own applets tells no path.
    assert facts.env.startswith("/") or name == "busybox"
    assert facts.base["PATH"] == "/bin"
    assert facts.cgroups in {"", "v1", "v2"}


def test_what_goes_through_a_worker():
    plain, bash = Facts(kind="plain"), Facts(kind="bash", env="/usr/bin/env")
    assert shell.fits_fast_path(["ls"], {"A": "1"}, plain)
    assert shell.fits_fast_path(["ls"], {"a.b": "1"}, bash)
    assert not shell.fits_fast_path(["ls"], {"a.b": "1"}, plain)
    assert not shell.fits_fast_path(["ls"], {"IFS": "1"}, plain)
    assert not shell.fits_fast_path([""], {}, plain)
    assert not shell.fits_fast_path(["-x"], {}, plain)
    assert not shell.fits_fast_path(["a=b"], {}, bash)


def test_stats_of_both_cgroup_versions():
    one = b"=memory/memory.max_usage_in_bytes\n4096\n=cpuacct/cpuacct.usage\n1500000000\n"
    one += (
        b"=blkio/blkio.throttle.io_service_bytes\n8:0 Read 5\n8:0 Write 7\n8:16 Write 3\nTotal 15\n"
    )
    assert shell.parse_stats(one.split(b"\n")[:-1]) == (4096, 1.5, 10)
    two = b"=memory.peak\n=cpu.stat\nusage_usec 2500000\nuser_usec 1\n=io.stat\n"
    two += b"8:0 rbytes=1 wbytes=20 rios=1\n8:16 wbytes=2\n=memory.current\n77\n"
    assert shell.parse_stats(two.split(b"\n")[:-1]) == (77, 2.5, 22)
    assert shell.parse_stats([]) == (0, 0.0, 0)


def test_counters():
    assert shell.parse_counters([b"3 4 12.34"]) == (Counters(3, 4), 1234)
    assert shell.parse_counters([]) == (Counters(), 0)
