"""The runtime without an engine keeps the same contract as far as it can."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import (
    ImageUnavailable,
    MissingDirectory,
    SandboxGone,
    SandboxTimeout,
    UnknownUser,
)
from pytest_sandbox.limits import Limits
from pytest_sandbox.runtimes.base import (
    BuildRequest,
    Changes,
    Result,
    Runtime,
    SandboxSpec,
    System,
)
from pytest_sandbox.runtimes.fake import FakeRuntime
from pytest_sandbox.runtimes.owner import current_owner
from pytest_sandbox.targets import Target

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_sandbox.runtimes.fake import FakeSystem

TARGET = Target("linux", "amd64", "debian")


def start(
    runtime: FakeRuntime, image: str = "debian", run: str = "r", **values: object
) -> FakeSystem:
    spec = SandboxSpec(image, TARGET, Limits(), **values)  # type: ignore[arg-type]
    return runtime.start(spec, current_owner(run))


def packed(name: str, data: bytes) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o640
        tar.addfile(member, io.BytesIO(data))
    out.seek(0)
    return out


def test_it_is_a_runtime():
    runtime: Runtime = FakeRuntime()
    system = runtime.start(SandboxSpec("x", TARGET, Limits()), current_owner("r"))
    assert isinstance(system, System)


def test_answers_by_argv_line_and_name():
    runtime = FakeRuntime(
        results={
            ("jq", "-n", "1"): "1\n",
            "jq --version": b"jq-1.7\n",
            "jq": 2,
            "boom": UnknownUser("x"),
        }
    )
    system = start(runtime)
    assert system.run(["jq", "-n", "1"]).stdout == "1\n"
    assert system.run(["jq", "--version"]).stdout == "jq-1.7\n"
    assert system.run(["jq", "x"]).returncode == 2
    assert system.run(["other"]).returncode == 0
    with pytest.raises(UnknownUser):
        system.run(["boom"])
    assert start(FakeRuntime(default=127)).run(["any"]).returncode == 127


def test_answers_by_a_function(tmp_path: Path):
    system = start(FakeRuntime(results=lambda argv: Result((), 3, argv[0].encode(), b"err")))
    result = system.run(["x"], merge=True, log=tmp_path / "log")
    assert (result.argv, result.returncode, result.stdout) == (("x",), 3, "xerr")
    assert (tmp_path / "log").read_text() == "xerr"


def test_a_time_limit_is_raised():
    system = start(FakeRuntime(results={"slow": Result((), 137, b"part", limit="time")}))
    with pytest.raises(SandboxTimeout) as caught:
        system.run(["slow"], timeout=1)
    assert caught.value.result.stdout == "part"


def test_calls_are_recorded():
    runtime = FakeRuntime()
    start(runtime, env={"A": "1"}, user="me").run(["x"], env={"B": "2"}, cwd="/usr", input=b"in")
    call = runtime.calls[0]
    assert call.env == {"A": "1", "B": "2"}
    assert (call.cwd, call.user, call.input) == ("/usr", "me", b"in")


def test_wrong_calls():
    system = start(FakeRuntime())
    with pytest.raises(TypeError, match="list of words"):
        system.run("ls -l")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        system.run([])
    with pytest.raises(MissingDirectory):
        system.run(["x"], cwd="/no/such")


def test_files_and_changes():
    runtime = FakeRuntime(files={"/etc/base": "old"})
    system = start(runtime)
    assert system.changes() == Changes()
    system.put(packed("new", b"\x00data"), "/opt")
    system.put(packed("base", b"changed"), "/etc")
    assert system.changes() == Changes(added=("/opt/new",), changed=("/etc/base",))
    found, chunks = system.get("/opt/new")
    assert (found.name, found.size, found.mode & 0o777) == ("new", 5, 0o640)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        member = tar.extractfile("new")
        assert member is not None
        assert member.read() == b"\x00data"
    with pytest.raises(FileNotFoundError):
        system.get("/nope")
    with pytest.raises(FileNotFoundError):
        system.put(packed("x", b""), "/nope")
    with pytest.raises(NotADirectoryError):
        system.put(packed("x", b""), "/etc/base")
    assert system.stat("/nope") is None


def test_snapshots():
    runtime = FakeRuntime()
    system = start(runtime)
    system.files.write("/opt/x", "1")
    name, kept = system.snapshot(), system.snapshot(name="kept:1", labels={"a": "b"})
    other = start(runtime, image=name)
    assert other.files.nodes["/opt/x"].data == b"1"
    assert other.changes() == Changes()
    assert runtime.sweep("r") == 3  # two systems, one snapshot
    assert runtime.find_image(name) is None
    found = runtime.find_image(kept)
    assert found is not None
    assert found.labels == {"a": "b"}


def test_images():
    runtime = FakeRuntime(images=["debian"])
    with pytest.raises(ImageUnavailable):
        start(runtime, image="nope")
    with pytest.raises(ImageUnavailable):
        runtime.pull("nope", TARGET, lambda _line: None)
    request = BuildRequest("tsuku/sandbox-cache:1", TARGET, "FROM debian\n", {}, labels={"k": "v"})
    assert runtime.build(request, lambda _line: None).labels == {"k": "v"}
    assert runtime.builds == [request]
    assert [image.name for image in runtime.images()] == ["debian", "tsuku/sandbox-cache:1"]
    runtime.remove_image("debian")
    assert runtime.find_image("debian") is None


def test_an_image_of_ours_must_be_built_first():
    runtime = FakeRuntime()
    assert runtime.find_image("tsuku/sandbox-cache:1") is None
    assert runtime.find_image("debian:trixie") is not None


def test_reap_and_close():
    runtime = FakeRuntime()
    one, two = start(runtime, run="a"), start(runtime, run="b")
    assert runtime.reap(lambda owner, _created: owner.run == "a") == 1
    assert (one.alive(), two.alive()) == (False, True)
    runtime.close()
    assert not two.alive()
    with pytest.raises(SandboxGone):
        two.run(["x"])
    two.close()
