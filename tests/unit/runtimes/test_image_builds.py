"""A session's images on a runtime that only notes what it is asked to build."""

from __future__ import annotations

import threading

import pytest

from pytest_sandbox.errors import Blame, BuildFailed, ImageUnavailable
from pytest_sandbox.images.families import load_families
from pytest_sandbox.images.name import image_name
from pytest_sandbox.images.requirements import SystemRequirements
from pytest_sandbox.images.spec import derive_spec
from pytest_sandbox.runtimes.fake import FakeRuntime
from pytest_sandbox.runtimes.image_builds import ImageBuilds, Rules, builds_at_once
from pytest_sandbox.targets import Target, host_arch

TARGET = Target("linux", host_arch(), "debian")
BASE = "own/debian:1"
HEAVY = [f"heavy{n}" for n in range(30)]
CLOSURES = {"jq": ["jq", "libjq"], "gcc": ["gcc", *HEAVY], "g++": ["g++", *HEAVY], "make": ["make"]}


class Resolving(FakeRuntime):
    """It knows what packages need; others come alone, `gone` not at all."""

    def __init__(self, *, broken=()):
        super().__init__([BASE], arches=(TARGET.arch,))
        self.asked, self.broken, self.threads = [], broken, set()

    def resolve_packages(self, request, sets, say):
        self.asked.append((request.dockerfile, [list(one) for one in sets]))
        say("resolving")
        return "ground", [self._parts(one) for one in sets]

    def _parts(self, packages):
        if "gone" in packages:
            return None
        names = sorted({part for name in packages for part in CLOSURES.get(name, [name])})
        return tuple(f"{name}_1_{TARGET.arch}.deb 1000000 SHA256:00" for name in names)

    def build(self, request, say):
        self.threads.add(threading.current_thread().name)
        say(f"step 1/1: {request.name}")
        if any(word in request.dockerfile for word in self.broken) and request.ground:
            msg = "it does not work so"
            raise BuildFailed(msg, blame=Blame.RECIPE)
        return super().build(request, say)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_SANDBOX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))


def spec(*packages, certificates=()):
    needs = SystemRequirements(packages={"apt": tuple(sorted(packages))})
    families = load_families(overrides={"debian": BASE})
    return derive_spec(needs, TARGET, families=families, certificates=certificates)


def made(runtime, specs, rules=None, **more):
    """Get all of them; name -> the request that built it."""
    builds = ImageBuilds(runtime, rules or Rules(), expected=lambda: specs, **more)
    try:
        for one in specs:
            assert builds.get(one).info.name == image_name(one)
    finally:
        builds.close()
        builds.join()
    return {request.name: request for request in runtime.builds}


def test_what_they_have_in_common_is_installed_once():
    runtime, said = Resolving(), []
    gcc, gpp, jq = spec("gcc"), spec("g++"), spec("jq")
    found = made(runtime, [gcc, gpp, jq], say=said.append)
    (common,) = found.keys() - {image_name(one) for one in (gcc, gpp, jq)}
    for one in (gcc, gpp):
        request = found[image_name(one)]
        first, label, *rest = request.dockerfile.splitlines()
        assert first == f"FROM {common}"
        assert request.labels["org.pytest-sandbox.hash"] in label
        assert request.ground == "ground"
        assert "apt-mark auto heavy0 " in rest[-1]
        assert request.files["Dockerfile"].decode() == request.dockerfile
    assert found[image_name(jq)].dockerfile.startswith(f"FROM {BASE}\n")
    assert not found[image_name(jq)].ground
    beginning, sets = runtime.asked[0]
    assert beginning.splitlines()[0] == f"FROM {BASE}"
    assert sorted(sets) == [["g++"], ["gcc"], ["jq"]]
    assert runtime.asked[1][1] == [sorted(HEAVY)], "what is common is tried before it is built"
    assert "resolving" in said
    assert any(line.startswith("built ") for line in said)


def test_certificates_are_installed_once():
    runtime = Resolving()
    jq, make = (spec(name, certificates=["PEM"]) for name in ("jq", "make"))
    found = made(runtime, [jq, make])
    (first,) = found.keys() - {image_name(jq), image_name(make)}
    assert found[first].files["certificates/pytest-sandbox-00.crt"] == b"PEM"
    for one in (jq, make):
        text = found[image_name(one)].dockerfile
        assert text.startswith(f"FROM {first}\nLABEL ")
        assert text.endswith("\n".join(["", *one.commands[2:], ""]))
        assert "COPY" not in text


def test_what_cannot_be_had_is_for_its_own_build_to_tell():
    runtime = Resolving()
    found = made(runtime, [spec("gone"), spec("jq"), spec("make")])
    assert len(found) == 3
    assert all(request.dockerfile.startswith(f"FROM {BASE}\n") for request in found.values())


def test_one_that_cannot_stand_on_another_is_built_alone():
    runtime = Resolving(broken=["g++"])
    gpp = spec("g++")
    found = made(runtime, [spec("gcc"), gpp])
    assert found[image_name(gpp)].dockerfile.startswith(f"FROM {BASE}\n")


def test_an_engine_that_cannot_resolve_builds_side_by_side():
    runtime = FakeRuntime([BASE], arches=(TARGET.arch,))
    assert len(made(runtime, [spec("gcc"), spec("g++")])) == 2
    runtime = Resolving()
    made(runtime, [spec("gcc")])
    assert runtime.threads == {threading.current_thread().name}, "one is no matter of a plan"
    assert not runtime.asked


def test_nothing_is_planned_for_images_that_are_there():
    runtime = Resolving()
    specs = [spec("gcc"), spec("g++")]
    made(runtime, specs)
    count = len(runtime.builds)

    def expected():
        raise AssertionError

    builds = ImageBuilds(runtime, Rules(), expected=expected)
    assert builds.get(specs[0]).hit
    assert len(runtime.builds) == count
    again = made(runtime, specs, Rules(rebuild=True, rebuild_token="run"))
    assert len(runtime.builds) == 2 * count
    assert all(request.lists_since for request in list(again.values())[-2:])


def test_offline_builds_nothing():
    runtime = Resolving()
    builds = ImageBuilds(runtime, Rules(offline=True), expected=lambda: [spec("jq"), spec("gcc")])
    for _ in range(2):
        with pytest.raises(ImageUnavailable, match="offline"):
            builds.get(spec("jq"))
    builds.close()
    assert not runtime.asked
    assert not runtime.builds


def test_the_end_of_a_run_ends_its_builds():
    runtime, begun = Resolving(), threading.Event()
    go_on = threading.Event()
    slow = runtime.build

    def build(request, say):
        begun.set()
        assert go_on.wait(10)
        return slow(request, say)

    runtime.build = build
    builds = ImageBuilds(runtime, Rules(), expected=lambda: [spec("jq"), spec("gcc"), spec("make")])
    ended = []

    def wait():
        with pytest.raises(ImageUnavailable, match="the run is over"):
            builds.get(spec("jq"))
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(10)
    builds.close()
    go_on.set()
    builds.join()
    waiting.join(10)
    assert ended
    assert not runtime.builds


def test_a_runs_share_is_divided_among_its_workers(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert [builds_at_once(workers) for workers in (1, 2, 3, 8)] == [4, 2, 1, 1]
