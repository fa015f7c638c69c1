"""Jobs: what goes in and comes out, where they run, how they fail and are cancelled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.oci.supervisor.conftest import alive, soon


def test_a_job_runs_where_it_is_asked_to(told):
    found = told("""
keeper = supervisor()
host = keeper.call(JOB + "echo", {"word": "\\udce4 x"}, where="host")
mapped = keeper.call(JOB + "echo", {}, where="mapped")
both = keeper.call(JOB + "in_the_ids", {}, where="host")
ids = [[str(n) for n in r] for r in keeper.ids.uids]
there = os.path.isdir(keeper.room)
tell(host=host, mapped=mapped, both=both, ids=ids, room=keeper.room, there=there)
keeper.close()
""")
    assert found["host"]["args"] == {"word": "\udce4 x"}
    assert found["host"]["uid"] == found["mapped"]["uid"] == 0
    assert found["host"]["room"] == found["room"]
    assert found["host"]["warmed"], "warm() is called once, in the supervisor"
    ids = [word for entry in found["ids"] for word in entry]
    assert found["mapped"]["uid_map"] == ids
    assert found["both"]["inside"] == {"uid_map": ids, "uid": 0}
    assert found["both"]["before"] == found["both"]["after"]
    if os.geteuid() == 0:
        assert found["host"]["uid_map"] != ids
    assert found["there"]
    assert not Path(found["room"]).exists()


def test_errors_are_raised_again_with_type_and_fields(told):
    found = told("""
keeper = supervisor()
errors = {}
for kind in ("sandbox", "usage", "os", "value", "mapped", "other", "killed"):
    try:
        keeper.call(JOB + "fail", {"kind": kind}, where="host")
    except BaseException as error:
        names = ("what", "next_step", "details", "phase", "blame", "errno", "filename")
        errors[kind] = {"type": type(error).__name__, "text": str(error)}
        errors[kind] |= {n: getattr(error, n) for n in names if hasattr(error, n)}
for name in ("os:system", "pytest_sandbox.oci.linux:no such", "pytest_sandbox.none:x"):
    try:
        keeper.call(name, {})
    except BaseException as error:
        errors[name] = {"type": type(error).__name__, "text": str(error)}
tell(**errors, still=keeper.call(JOB + "echo", {"n": 1})["args"])
keeper.close()
""")
    sandbox = found["sandbox"]
    assert sandbox["type"] == "MissingDirectory"
    assert sandbox["what"] == "no such folder: /x"
    assert sandbox["next_step"] == "make it"
    assert sandbox["details"] == "line 1\nline 2"
    assert found["usage"]["type"] == "UsageError"
    assert found["usage"]["blame"]
    for kind in ("os", "mapped"):
        assert found[kind]["type"] == "FileNotFoundError", kind
        assert found[kind]["errno"] == 2
        assert found[kind]["filename"] == "/does/not/exist"
    assert found["value"] == {"type": "ValueError", "text": "no number"}
    assert found["other"]["type"] == "JobFailed"
    assert "RuntimeError: unforeseen" in found["other"]["what"]
    assert "jobs.py" in found["other"]["details"]
    assert found["killed"]["type"] == "JobFailed"
    assert "ended without an answer" in found["killed"]["what"]
    assert found["os:system"]["type"] == "ValueError"
    assert found["pytest_sandbox.oci.linux:no such"]["type"] == "ValueError"
    assert "pytest_sandbox.none" in found["pytest_sandbox.none:x"]["text"]
    assert found["still"] == {"n": 1}


def test_big_messages(told):
    found = told("""
keeper = supervisor()
text = "\\u00e4" * 3_000_000 + "end"
answers = [keeper.call(JOB + "echo", {"text": text}, where=w)["args"]["text"] == text
           for w in ("host", "mapped")]
tell(answers=answers)
keeper.close()
""")
    assert found["answers"] == [True, True]


def test_descriptors_go_both_ways_and_none_is_left(told):
    found = told("""
keeper = supervisor()
def once():
    source, target = os.memfd_create("in"), os.memfd_create("out")
    os.pwrite(source, b"hello", 0)
    channel = keeper.open(JOB + "copy", {}, [source, target])
    answer = channel.result()
    said = [channel.receive(5), channel.receive(5)]
    channel.close()
    (first, given), (second, none) = said
    made = os.read(given[0], 100).decode()
    inherited = os.get_inheritable(given[0])
    out = os.pread(target, 100, 0).decode()
    for descriptor in (source, target, *given):
        os.close(descriptor)
    return dict(answer=answer, first=first, second=second, none=none, made=made, out=out,
                inherited=inherited)
def held(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
once()
before = held("self"), held(keeper.pid)
for _ in range(20):
    last = once()
time.sleep(0.2)
tell(**last, before=before, after=(held("self"), held(keeper.pid)))
keeper.close()
""")
    assert found["answer"] == {"read": 5}
    assert found["out"] == "HELLO"
    assert found["made"] == "made here"
    assert found["first"] == {"said": {"here": 1}}
    assert found["second"] == {"said": {"here": 2}}
    assert found["none"] == []
    assert not found["inherited"]
    assert found["after"] == found["before"]


def test_jobs_of_threads_run_at_the_same_time(told):
    found = told("""
keeper = supervisor()
began = time.monotonic()
results = {}
def one(n):
    results[n] = keeper.call(JOB + "who", {"seconds": 0.5}, where="host")["pid"]
threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
tell(took=time.monotonic() - began, pids=len(set(results.values())))
keeper.close()
""")
    assert found["pids"] == 8
    assert found["took"] < 3


def test_an_interrupted_call_ends_its_job(client, tmp_path):
    file = tmp_path / "pid"
    one = client(f"""
keeper = supervisor()
signal.signal(signal.SIGINT, signal.default_int_handler)
tell(ready=keeper.call(JOB + "echo", {{}}, where="host") and True)
try:
    keeper.call(JOB + "sleep", {{"file": {str(file)!r}}}, where="host")
except KeyboardInterrupt:
    tell(interrupted=True, still=keeper.call(JOB + "echo", {{"n": 2}})["args"])
sys.stdin.read()
keeper.close()
""")
    assert one.hear()["ready"]
    assert soon(lambda: file.exists() and file.read_text())
    job = int(file.read_text())
    assert alive(job)
    one.process.send_signal(2)
    assert one.hear() == {"interrupted": True, "still": {"n": 2}}
    assert soon(lambda: not alive(job))
    one.end()


def test_a_cancel_ends_only_the_jobs_of_who_asks(client, tmp_path):
    """Two clients of one supervisor number their jobs alike."""
    file = tmp_path / "pid"
    place = tmp_path / "socket"
    one = client(f"""
keeper = supervisor()
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind({str(place)!r}); listener.listen(4)
keeper.listen(listener)
end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
end.connect({str(place)!r})
other = Supervisor.connected(end)
channel = other.open(JOB + "sleep", {{"file": {str(file)!r}}})  # its first
deadline = time.monotonic() + 10
while not Path({str(file)!r}).exists() and time.monotonic() < deadline: time.sleep(0.01)
for number in range(5): keeper._cancel(number)
keeper.call(JOB + "echo", {{}})
tell(job=int(Path({str(file)!r}).read_text()))
sys.stdin.readline()
other._cancel(1)
tell(cancelled=True)
sys.stdin.read()
keeper.close()
""")
    job = one.hear()["job"]
    assert alive(job)
    one.process.stdin.write("\n")
    one.process.stdin.flush()
    assert one.hear()["cancelled"]
    assert soon(lambda: not alive(job))
    one.end()


def test_workers_do_what_can_be_repeated(told):
    found = told("""
keeper = supervisor()
def who(**args):
    time.sleep(0.05)  # until the last one waits again
    return keeper.call(JOB + "who", args, where="host")
first = who()
warm = [who() for _ in range(20)]
try: who(fail=True)
except ValueError: pass
after_failure = who()
spent = who(spent=True)
after_spent = who()
mapped = keeper.call(JOB + "who", {}, where="mapped")
keeper.close()
tell(first=first, warm=warm, after_failure=after_failure, spent=spent, after_spent=after_spent,
     mapped=mapped, left=[w["pid"] for w in (first, after_failure, after_spent)
                          if os.path.exists(f"/proc/{w['pid']}")])
""")
    pid = found["first"]["pid"]
    assert {one["pid"] for one in found["warm"]} == {pid}
    assert len({one["descriptors"] for one in found["warm"]}) == 1, "a job's descriptors are closed"
    assert found["after_failure"]["pid"] != pid, "who failed does no other job"
    assert found["spent"]["pid"] == found["after_failure"]["pid"]
    assert found["after_spent"]["pid"] not in {pid, found["spent"]["pid"]}
    assert found["mapped"]["pid"] not in {pid, found["after_spent"]["pid"]}
    assert found["left"] == []


def test_a_killed_worker_is_replaced(told):
    found = told("""
keeper = supervisor()
before = keeper.call(JOB + "who", {}, where="host")["pid"]
os.kill(before, signal.SIGKILL)
time.sleep(0.2)
after = keeper.call(JOB + "who", {}, where="host")["pid"]
tell(before=before, after=after)
keeper.close()
""")
    assert found["before"] != found["after"]


@pytest.mark.parametrize("way", ["fork()", "None"], ids=["forked", "new interpreter"])
def test_both_ways_to_start(told, way):
    found = told(f"""
before = set(os.listdir("/proc/self/fd"))
keeper = Supervisor(find_ids)
keeper.spawned = {way}
keeper.start()
secret = subprocess.run(["cat", f"/proc/{{keeper.pid}}/environ"], capture_output=True).stdout
comm = Path(f"/proc/{{keeper.pid}}/comm").read_text().strip()
stdin = os.readlink(f"/proc/{{keeper.pid}}/fd/0") if os.geteuid() == 0 else "/dev/null"
session = os.getsid(keeper.pid) == keeper.pid
tell(comm=comm, session=session, stdin=stdin)
keeper.close()
""")
    assert found == {"comm": "sandbox-keeper", "session": True, "stdin": "/dev/null"}
