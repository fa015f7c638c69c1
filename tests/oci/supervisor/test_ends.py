"""What a supervisor watches, and the ends: of a process, of the client, of the supervisor."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.oci.supervisor.conftest import alive, mounted, soon


def test_the_end_of_a_process_is_told_and_what_follows_is_done(told, tmp_path):
    file = str(tmp_path / "status")
    found = told(f"""
keeper = supervisor()
def one(**args):
    channel = keeper.open(JOB + "leave", args)
    left = channel.result()
    if "signal" in args: channel.signal(args["signal"])
    if "end" in args: channel.end()
    return dict(left, said=messages(channel))
ended = one(seconds=0, status=7, file={file!r})
late = one(seconds=0, status=8, file={file + "2"!r}, late=True)
killed = one(seconds=60, signal=9, file={file + "3"!r})
by_end = one(seconds=60, end=True, file={file + "4"!r})
plain = one(seconds=0, status=3)
tell(ended=ended, late=late, killed=killed, by_end=by_end, plain=plain)
keeper.close()
""")
    gone = {"gone": {"more": 1}}
    assert found["ended"]["said"] == [{"exit": 7}, {"said": {"noted": True, "dying": 0}}, gone]
    assert found["late"]["said"][0] == {"exit": 8}, "it had ended before it was watched"
    assert found["killed"]["said"][0] == {"exit": -9}
    by_end = [said for said in found["by_end"]["said"] if "exit" not in said]
    assert by_end == [{"said": {"noted": True, "dying": 1}}, gone], "it began while that died"
    assert found["plain"]["said"] == [{"exit": 3}, {"gone": {}}]
    assert [Path(file + n).read_text() for n in ("", "2", "3", "4")] == ["7", "8", "-9", "-9"]
    for name in ("killed", "by_end"):
        assert soon(lambda pid=found[name]["pid"]: not alive(pid))


def test_closing_the_channel_ends_the_process_and_leaving_it_does_not(client, tmp_path):
    file = tmp_path / "status"
    one = client(f"""
keeper = supervisor()
first = keeper.open(JOB + "leave", {{"file": {str(file)!r}}})
second = keeper.open(JOB + "leave", {{}})
pids = [first.result()["pid"], second.result()["pid"]]
first.close()
second.leave()
second.close()
tell(pids=pids)
sys.stdin.read()
keeper.close()
""")
    first, second = one.hear()["pids"]
    assert soon(lambda: not alive(first))
    assert soon(lambda: file.exists() and file.read_text() == "-9")
    assert alive(second)
    one.end()
    assert not alive(second), "it ends with its supervisor"


@pytest.mark.skipif(os.geteuid() != 0, reason="root chooses the next process id")
def test_an_id_that_is_used_again_is_no_old_end(told):
    """The first orphan is reaped without anybody asking; the second one has its id."""
    found = told(
        """
keeper = supervisor()
first = keeper.call(JOB + "leave", {"seconds": 0, "status": 5, "watch": False}, where="host")["pid"]
deadline = time.monotonic() + 10
while os.path.exists(f"/proc/{first}") and time.monotonic() < deadline: time.sleep(0.01)
channel = keeper.open(JOB + "leave", {"seconds": 1, "status": 6, "next_pid": first})
second = channel.result()["pid"]
living = os.path.exists(f"/proc/{second}")
tell(first=first, second=second, living=living, said=messages(channel))
keeper.close()
""",
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"],
    )
    assert found["first"] == found["second"], "the kernel gave another id"
    assert found["living"]
    assert found["said"] == [{"exit": 6}, {"gone": {}}]


def test_a_killed_client_takes_everything_with_it(client, tmp_path):
    one = client(_busy(str(tmp_path / "pid"), job=False))
    found = one.hear()
    assert mounted(found["room"])
    one.process.kill()
    one.process.wait()
    every = [found["keeper"], found["pid"], found["worker"]]
    assert soon(lambda: not any(map(alive, every))), [pid for pid in every if alive(pid)]
    assert soon(lambda: not Path(found["room"]).exists())
    assert mounted(found["room"]) == []


def test_a_killed_supervisor_takes_its_jobs_and_mounts_with_it(client, tmp_path):
    one = client(
        _busy(str(tmp_path / "pid"), job=True)
        + """
sys.stdin.readline()
try:
    keeper.call(JOB + "echo", {})
except SandboxError as error:
    tell(what=error.what, ended=channel.receive(5))
keeper.close()
"""
    )
    found = one.hear()
    os.kill(found["keeper"], signal.SIGKILL)
    assert soon(lambda: not any(map(alive, (found["job"], found["worker"]))))
    os.kill(found["pid"], signal.SIGKILL)  # a plain process: a sandbox has its init
    assert soon(lambda: not mounted(found["room"]))
    one.process.stdin.write("\n")
    one.process.stdin.flush()
    assert one.hear() == {"what": "the supervisor of sandboxes is gone", "ended": None}
    one.end()
    assert not Path(found["room"]).exists()


def _busy(file, *, job):
    """A client with a watched process, a worker and, if asked for, a long job."""
    begin = f'job = keeper.open(JOB + "sleep", {{"file": {file!r}}})' if job else ""
    wait = f"while not Path({file!r}).exists() or not Path({file!r}).read_text(): time.sleep(0.01)"
    return f"""
keeper = supervisor()
channel = keeper.open(JOB + "leave", {{}})
left = channel.result()
{begin}
worker = keeper.call(JOB + "who", {{}}, where="host")["pid"]
{wait if job else ""}
tell(keeper=keeper.pid, room=keeper.room, pid=left["pid"],
     worker=worker, job={f"int(Path({file!r}).read_text())" if job else "0"})
{"" if job else "sys.stdin.read()"}
"""


def test_a_fork_of_the_client_has_its_own(told):
    found = told("""
keeper = supervisor()
mine = keeper.call(JOB + "echo", {}, where="host")["room"]
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    # Not a fork of a fork here: a new interpreter, which has no jobs of tests.
    keeper.start()
    os.write(writer, json.dumps([keeper.pid, keeper.room]).encode())
    keeper.close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
theirs = json.loads(os.read(reader, 1000))
still = keeper.call(JOB + "echo", {}, where="host")["room"]
tell(mine=mine, still=still, pid=keeper.pid, theirs=theirs, status=status,
     gone=not os.path.exists(theirs[1]))
keeper.close()
""")
    assert found["status"] == 0
    assert found["mine"] == found["still"]
    assert found["theirs"][0] != found["pid"]
    assert found["theirs"][1] != found["mine"]
    assert found["gone"]


def test_a_lasting_one_lives_until_its_last_process_is_gone(client, tmp_path):
    place = str(tmp_path / "socket")
    one = client(f"""
keeper = supervisor(lasting=True)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind({place!r}); listener.listen(4)
keeper.listen(listener)
channel = keeper.open(JOB + "leave", {{}})
pid = channel.result()["pid"]
channel.leave()
tell(keeper=keeper.pid, room=keeper.room, pid=pid)
keeper.close()
""")
    found = one.hear()
    assert one.process.wait(20) == 0
    assert alive(found["keeper"])
    assert alive(found["pid"])
    other = client(f"""
end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
end.connect({place!r})
keeper = Supervisor.connected(end)
tell(room=keeper.call(JOB + "echo", {{}}, where="host")["room"])
keeper.close()
""")
    assert other.hear()["room"] == found["room"]
    assert other.process.wait(20) == 0
    assert alive(found["keeper"])
    os.kill(found["pid"], signal.SIGKILL)
    assert soon(lambda: not alive(found["keeper"]))
    assert not Path(found["room"]).exists()


def test_one_that_cannot_start_says_why(told):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    found = told(
        """
Path("/proc/sys/user/max_user_namespaces").write_text("0")
keeper = Supervisor(find_ids)
before = set(Path("/tmp").glob("pytest-sandbox-room-*"))
try:
    keeper.start()
except SandboxError as error:
    left = [str(p) for p in set(Path("/tmp").glob("pytest-sandbox-room-*")) - before
            if f"-{os.getpid()}-" in p.name]
    tell(type=type(error).__name__, what=error.what, next_step=error.next_step, left=left)
""",
        # A limit of a user namespace of its own: the host's is left alone.
        ["unshare", "--user", "--map-root-user"],
    )
    assert found["type"] in {"RuntimeUnavailable", "NoIds"}
    assert found["what"]
    assert found["next_step"]
    assert found["left"] == []


def test_a_process_that_is_made_ahead_is_taken_once_or_ends(client):
    one = client("""
from pytest_sandbox.oci.supervisor import spawn
def made():
    spawn.spawn_ahead(["pytest_sandbox.oci.layers.jobs"])
    return spawn._ahead[0][1].pid
taken = made()
keeper = Supervisor(find_ids)
keeper.start()
other = Supervisor(find_ids)
other.start()
os.kill(made(), signal.SIGKILL)
time.sleep(0.2)
third = Supervisor(find_ids)
third.start()
again, left = made(), made()
spawn.forget_ahead()
nobody = made()
tell(taken=taken, pids=[keeper.pid, other.pid], ended=[again, left], nobody=nobody)
sys.stdin.read()
""")
    found = one.hear()
    assert found["pids"][0] == found["taken"] != found["pids"][1]
    assert not any(alive(pid) for pid in found["ended"])
    assert alive(found["nobody"])
    one.process.kill()
    assert soon(lambda: not alive(found["nobody"])), "it ends with who made it"
