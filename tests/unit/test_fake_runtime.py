"""FakeRuntime as a user's conftest has it: whole pytest runs without an engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.provision.bases import Base, adopt_base, without_digest
from pytest_sandbox.targets import host_arch

if TYPE_CHECKING:
    from pathlib import Path

CONFTEST = """\
from pytest_sandbox import FakeRuntime


def pytest_sandbox_runtime(config, name):
    return FakeRuntime(results={results})
"""

RECIPE = """\
[metadata]
name = "jq"

[[steps]]
action = "run_command"
command = "make install"

[verify]
command = "jq --version"
pattern = "jq-1.7"
"""


@pytest.fixture(autouse=True)
def _folders(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record of bases, no cache but this test's, no engine that anything could reach."""
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"PYTEST_SANDBOX_{name}", str(pytester.path / name.lower()))
    monkeypatch.delenv("PYTEST_SANDBOX_REQUIRE", raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/no.sock")
    pytester.makeini("[pytest]\n")


@pytest.fixture
def recipes(pytester: pytest.Pytester) -> Path:
    folder = pytester.mkdir("recipes")
    (folder / "jq.toml").write_text(RECIPE)
    return folder


def record_a_base() -> None:
    """What `pytest-sandbox image bootstrap debian` leaves in the user's record."""
    from pytest_sandbox.images.families import load_families

    reference = without_digest(load_families()["debian"].image)
    for arch in {"amd64", host_arch()}:
        adopt_base(
            Base(
                reference=reference,
                arch=arch,
                sha256="5" * 64,
                suite="trixie",
                created=1.0,
                size=1,
            )
        )


@pytest.mark.parametrize("recorded", [False, True], ids=["no-base", "bootstrapped-base"])
def test_a_sandbox_gives_the_scripted_results(pytester: pytest.Pytester, recorded: bool) -> None:
    if recorded:
        record_a_base()
    results = {"jq --version": "jq-1.7.1\n", "false": 1, ("echo", "a b"): b"\xff"}
    pytester.makeconftest(CONFTEST.format(results=results))
    pytester.makepyfile(
        """
        import pytest

        def test_results(sandbox, sandbox_runtime):
            assert sandbox.run(["jq", "--version"]).stdout == "jq-1.7.1\\n"
            assert sandbox.run(["false", "x"]).returncode == 1
            assert sandbox.run(["echo", "a b"]).stdout_bytes == b"\\xff"
            assert sandbox.run(["something", "else"]).ok
            assert [call.argv[0] for call in sandbox_runtime.calls] == [
                "jq", "false", "echo", "something"
            ]

        def test_files(sandbox):
            sandbox.write_text("/etc/x", "hello")
            assert sandbox.read_text("/etc/x") == "hello"
            assert sandbox.changes().added == ("/etc/x",)
            fork = sandbox.fork()
            fork.write_text("/etc/x", "other")
            assert sandbox.read_text("/etc/x") == "hello"
            with pytest.raises(FileNotFoundError):
                sandbox.read_text("/nowhere")
        """
    )
    pytester.runpytest("--sandbox-require").assert_outcomes(passed=2)


def test_a_mark_s_image_is_built_on_the_fake(pytester: pytest.Pytester, recipes: Path) -> None:
    (recipes / "jq.toml").write_text(
        '[metadata]\nname = "jq"\n[[steps]]\naction = "require_system"\ncommand = "jq"\n'
        'packages = { apt = ["jq"] }\n[verify]\ncommand = "jq --version"\n'
    )
    pytester.makeconftest(CONFTEST.format(results={}))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.requires_system("jq")
        def test_built(sandbox, sandbox_runtime):
            assert [build.name for build in sandbox_runtime.builds] == [sandbox.image]
            assert "jq" in sandbox_runtime.builds[0].dockerfile
        """
    )
    pytester.runpytest("--sandbox-require").assert_outcomes(passed=1)


@pytest.mark.parametrize("recorded", [False, True], ids=["no-base", "bootstrapped-base"])
def test_a_recipe_is_green(pytester: pytest.Pytester, recipes: Path, recorded: bool) -> None:
    if recorded:
        record_a_base()
    pytester.makeconftest(CONFTEST.format(results={"jq --version": "jq-1.7.1\n"}))
    result = pytester.runpytest("--sandbox", "--sandbox-target", "debian", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"recipes/jq.toml::install?debian-{host_arch()}? PASSED*"])


def test_recipes_of_all_families_are_green(pytester: pytest.Pytester, recipes: Path) -> None:
    pytester.makeconftest(CONFTEST.format(results={"jq --version": "jq-1.7.1\n"}))
    result = pytester.runpytest("--sandbox", "--sandbox-target", "linux/amd64/*")
    result.assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("results", "line"),
    [
        ({"jq --version": "jq-1.6\n"}, "*verify: recipe: *did not print 'jq-1.7'*"),
        ({"jq --version": 3}, "*verify: recipe: *exit 3*"),
        ({"make install": 2}, "*install: recipe: *"),
    ],
)
def test_a_recipe_is_red(
    pytester: pytest.Pytester, recipes: Path, results: dict[str, object], line: str
) -> None:
    pytester.makeconftest(CONFTEST.format(results=results))
    result = pytester.runpytest("--sandbox", "--sandbox-target", "linux/amd64/debian")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([line])


def test_a_plugin_s_proof_fails_under_its_own_name(
    pytester: pytest.Pytester, recipes: Path
) -> None:
    pytester.makeconftest(
        CONFTEST.format(results={"jq --version": "jq-1.7.1\n"})
        + """

from pytest_sandbox import CheckFailed


def pytest_sandbox_prove(config, system, plan):
    result = system.run(["ldd", "/usr/bin/jq"])
    raise CheckFailed(f"{plan.tool}: no manual page", result=result, proof="manual")
"""
    )
    result = pytester.runpytest("--sandbox", "--sandbox-target", "linux/amd64/debian")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*prove/manual: recipe: jq: no manual page",
            "FAILED recipes/jq.toml::install?debian-amd64? - prove/manual: recipe: jq: no*",
        ]
    )


def test_a_proof_that_holds_leaves_it_green(pytester: pytest.Pytester, recipes: Path) -> None:
    pytester.makeconftest(
        CONFTEST.format(results={"jq --version": "jq-1.7.1\n"})
        + """

def pytest_sandbox_prove(config, system, plan):
    assert system.run(["ldd", "/usr/bin/jq"]).ok
    print("proved", plan.tool)
"""
    )
    result = pytester.runpytest("--sandbox", "-s", "--sandbox-target", "linux/amd64/debian")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*proved jq*"])


def test_no_engine_s_library_is_imported(pytester: pytest.Pytester, recipes: Path) -> None:
    pytester.makeconftest(
        CONFTEST.format(results={"jq --version": "jq-1.7.1\n"})
        + """

import sys


def pytest_unconfigure(config):
    print("engine libraries:", sorted({"docker", "requests"} & sys.modules.keys()))
"""
    )
    pytester.makepyfile("def test_one(sandbox):\n    assert sandbox.run(['true']).ok\n")
    result = pytester.runpytest_subprocess(
        "--sandbox", ".", "--sandbox-target", "linux/amd64/debian", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["engine libraries: []"])


def test_the_public_module_alone_imports_little(pytester: pytest.Pytester) -> None:
    code = (
        "import sys, pytest_sandbox; pytest_sandbox.FakeRuntime(); "
        "print(sorted({'docker', 'httpx', 'pytest'} & sys.modules.keys()))"
    )
    pytester.run(sys.executable, "-c", code).stdout.fnmatch_lines(["[[][]]"])


def test_a_family_without_a_base_for_the_architecture_is_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_sandbox.images.spec import NoBase
    from pytest_sandbox.session import RunSession
    from pytest_sandbox.settings import Settings

    error = NoBase("no base of arch for arm64", next_step="choose another target")
    plain = RunSession(Settings(), pytester.path, "run")
    assert plain.may_skip(error)
    named = RunSession(Settings(given=frozenset({"target"})), pytester.path, "run")
    assert not named.may_skip(error)
    strict = RunSession(Settings(require=True), pytester.path, "run")
    assert not strict.may_skip(error)
