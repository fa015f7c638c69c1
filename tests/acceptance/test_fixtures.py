"""A user's own tests: the fixtures and marks, on a real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.leftovers import on

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtimes.base import Runtime

RUN_LABEL = "org.pytest-sandbox"

JQ = """\
[metadata]
name = "jq"

[[steps]]
action = "require_system"
command = "jq"
version_flag = "--version"
version_regex = "jq-([0-9.]+)"
min_version = "1.5"
packages = { apt = ["jq"], dnf = ["jq"], pacman = ["jq"], apk = ["jq"], zypper = ["jq"] }

[verify]
command = "jq --version"
pattern = "jq-"
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, engine: Runtime) -> Callable[..., pytest.RunResult]:
    """Run a test file beside a recipes folder with jq."""
    del engine
    pytester.makeini("[pytest]\n")
    pytester.mkdir("recipes").joinpath("jq.toml").write_text(JQ)

    def run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)

    return run


Suite = "Callable[..., pytest.RunResult]"


def test_sandbox_is_a_clean_debian(suite: Suite) -> None:
    suite(
        """
        def test_it(sandbox):
            assert "debian" in sandbox.read_text("/etc/os-release")
            assert not sandbox.changes()
            result = sandbox.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
            assert (result.returncode, result.stdout, result.stderr) == (3, "out\\n", "err\\n")
        """
    ).assert_outcomes(passed=1)


def test_marks_merge_key_by_key_and_the_closest_wins(suite: Suite) -> None:
    suite(
        """
        import pytest

        pytestmark = pytest.mark.sandbox(memory="256m", pids=77)

        @pytest.mark.sandbox(memory="300m")
        class TestIt:
            @pytest.mark.sandbox(env={"COLOUR": "red"})
            def test_it(self, sandbox):
                assert sandbox.limits.memory == 300 << 20
                assert sandbox.limits.pids == 77
                assert sandbox.run(["printenv", "COLOUR"]).stdout == "red\\n"
        """
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("sandbox(memroy='1g')", "*@pytest.mark.sandbox: memroy='1g': unknown key*"),
        ("sandbox(pids=1.5)", "*pids=1.5: is no whole number*"),
        ("sandbox(env='abc')", "*env='abc': is no mapping*"),
        ("sandbox(no_new_privileges='no')", "*no_new_privileges='no': unknown value*"),
        ("sandbox(target='linux/amd64/debian', family='suse')", "*say the same thing twice*"),
        ("sandbox(family='debain')", "*family='debain': unknown value*"),
        ("sandbox(memory='lots')", "*memory='lots'*is no size*"),
        ("sandbox('alpine')", "*takes keywords only*"),
        ("requires_system('nonesuch')", "*unknown recipe 'nonesuch'*"),
    ],
)
def test_a_wrong_mark_is_an_error_that_names_it(suite: Suite, mark: str, said: str) -> None:
    result = suite(f"import pytest\n@pytest.mark.{mark}\ndef test_it(sandbox): pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])


def test_requires_system_puts_the_recipe_into_the_image(suite: Suite) -> None:
    suite(
        """
        import pytest

        @pytest.mark.requires_system("jq")
        def test_with(sandbox):
            assert sandbox.run(["jq", "-n", "1+1"], check=True).stdout == "2\\n"

        def test_without(sandbox):
            assert sandbox.run(["jq", "--version"]).returncode == 127

        def test_install_first(sandbox):
            sandbox.install("jq")
            assert sandbox.run(["jq", "--version"]).ok

        def test_install_too_late(sandbox):
            sandbox.run(["true"])
            with pytest.raises(Exception, match="requires_system\\\\('jq'\\\\)"):
                sandbox.install("jq")
        """
    ).assert_outcomes(passed=4)


def test_requires_system_on_the_host_skips_with_the_cure(
    suite: Suite, pytester: pytest.Pytester
) -> None:
    text = JQ.replace('"jq"', '"no-such-jq"')
    pytester.path.joinpath("recipes/no-such-jq.toml").write_text(text)
    result = suite(
        """
        import pytest

        @pytest.mark.requires_system("no-such-jq")
        def test_it(): raise AssertionError("must not run")
        """,
        "-rs",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*'no-such-jq' is missing; install it: apt-get install no-such-jq*"]
    )


def test_factory_snapshot_and_fork(suite: Suite) -> None:
    suite(
        """
        def test_it(sandbox_factory):
            first = sandbox_factory()
            first.run(["sh", "-c", "echo 1 > /srv/a"], check=True)
            point = first.snapshot()
            child = first.fork()
            first.run(["sh", "-c", "echo 2 > /srv/a"], check=True)
            second = sandbox_factory(snapshot=point)
            assert first.read_text("/srv/a") == "2\\n"
            assert child.read_text("/srv/a") == "1\\n"
            assert second.read_text("/srv/a") == "1\\n"
            assert not second.changes()
        """
    ).assert_outcomes(passed=1)


def test_installed_is_installed_once_and_forked(suite: Suite) -> None:
    source = """
        import pytest

        @pytest.mark.parametrize("n", range(4))
        def test_it(installed, n):
            jq = installed("jq")
            assert jq.run(["jq", "--version"]).ok
            assert jq.run(["test", "-e", "/srv/mark"]).returncode == 1
            jq.run(["touch", "/srv/mark"], check=True)
        """
    suite(source, "-n", "2").assert_outcomes(passed=4)
    suite(source).assert_outcomes(passed=4)


def test_copy_in_and_out(suite: Suite) -> None:
    suite(
        """
        import os, pytest

        def test_it(sandbox, tmp_path):
            tree = tmp_path / "tree"
            tree.mkdir()
            (tree / "run").write_text("#!/bin/sh\\necho ran\\n")
            (tree / "run").chmod(0o755)
            (tree / "link").symlink_to("run")
            sandbox.copy_in(tree, "/srv/new")
            assert sandbox.run(["/srv/new/link"]).stdout == "ran\\n"
            sandbox.copy_in(tree, "/srv/new")  # into the folder that is there
            assert sandbox.run(["/srv/new/tree/run"]).ok
            sandbox.copy_out("/srv/new/tree", tmp_path / "back")
            assert os.readlink(tmp_path / "back/link") == "run"
            assert (tmp_path / "back/run").stat().st_mode & 0o777 == 0o755
            with pytest.raises(FileNotFoundError):
                sandbox.copy_in(tmp_path / "nothing", "/srv/x")
            with pytest.raises(FileNotFoundError):
                sandbox.copy_out("/nothing", tmp_path / "x")
            sandbox.write_text("/srv/text", "ä\\n")
            assert sandbox.read_text("/srv/text") == "ä\\n"
        """
    ).assert_outcomes(passed=1)


def test_mistakes_are_told_with_the_corrected_call(suite: Suite) -> None:
    suite(
        """
        import pytest
        from pytest_sandbox import SandboxTimeout

        def test_it(sandbox):
            with pytest.raises(TypeError, match="sandbox.run\\\\(\\\\['jq', '--version'\\\\]\\\\)"):
                sandbox.run("jq --version")
            with pytest.raises(TimeoutError) as late:
                sandbox.run(["sh", "-c", "echo begun; sleep 60"], timeout=1)
            assert isinstance(late.value, SandboxTimeout)
            assert late.value.result.stdout == "begun\\n"
            assert sandbox.run(["true"]).ok
        """
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "args",
    [
        ("-n", "4"),
        ("-n", "2", "--dist", "loadgroup"),
        ("--strict-markers", "-W", "error"),
        ("--import-mode=importlib", "-p", "no:terminal"),
    ],
    ids=" ".join,
)
def test_other_ways_to_run(suite: Suite, args: tuple[str, ...]) -> None:
    result = suite(
        """
        import pytest

        @pytest.mark.sandbox(memory="512m", network=False, timeout=30)
        @pytest.mark.parametrize("n", range(4))
        def test_it(sandbox, n):
            assert sandbox.run(["true"]).ok
        """,
        *args,
    )
    assert result.ret == 0
    if "no:terminal" not in args:
        result.assert_outcomes(passed=4)


def test_a_failing_test_shows_its_sandboxes(suite: Suite) -> None:
    result = suite(
        """
        def test_it(sandbox):
            sandbox.run(["sh", "-c", "echo told you >&2; exit 5"], check=True)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*linux/amd64/debian from *", "*-> 5", "*| told you"])
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_it - install: recipe: status 5: *"])


@on["docker"]
def test_no_engine_skips_and_require_fails(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/nothing.sock")
    monkeypatch.delenv("PYTEST_SANDBOX_REQUIRE", raising=False)
    source = "def test_it(sandbox): pass\n"
    result = suite(source, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*: *next: *"])
    result = suite(source, "--sandbox-require")
    result.assert_outcomes(errors=1)


@on["docker"]
def test_everything_without_an_engine_works_without_an_engine(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/nothing.sock")
    source = "def test_it(sandbox): pass\n"
    for args in (["--collect-only", "--sandbox"], ["--fixtures"], ["--markers"], ["--setup-plan"]):
        result = suite(source, *args)
        assert result.ret == 0, args
    result = suite(source, "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.sandbox(*", "@pytest.mark.requires_system(*"])


HELLO = """\
[metadata]
name = "hello"

[[steps]]
action = "run_command"
command = "printf '#!/bin/sh\\necho hello $GREETED\\n' > hello"

[[steps]]
action = "chmod"
files = ["hello"]

[[steps]]
action = "install_binaries"
binaries = ["hello"]

[[steps]]
action = "set_env"
vars = [{ name = "GREETED", value = "world" }]

[verify]
command = "hello"
pattern = "hello world"
"""


def test_what_a_plan_installed_is_on_the_path(suite: Suite, pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("recipes/hello.toml").write_text(HELLO)
    suite(
        """
        def test_install(sandbox):
            assert sandbox.run(["hello"]).returncode == 127
            sandbox.install("hello")
            assert sandbox.run(["hello"], check=True).stdout == "hello world\\n"
            assert sandbox.fork().run(["hello"]).ok
            assert sandbox.run(["printenv", "HOME"]).stdout == "/root\\n"

        def test_installed(installed, sandbox_factory):
            first = installed("hello")
            assert first.run(["hello"]).stdout == "hello world\\n"
            assert sandbox_factory(snapshot=first.snapshot()).run(["hello"]).ok
        """
    ).assert_outcomes(passed=2)


def test_the_runs_network_setting_holds_for_install_too(
    suite: Suite, pytester: pytest.Pytester
) -> None:
    pytester.path.joinpath("recipes/hello.toml").write_text(HELLO)
    suite(
        """
        def test_it(sandbox):
            sandbox.install("hello")
            assert sandbox.system.spec.network == "none"
        """,
        "--sandbox-network=none",
    ).assert_outcomes(passed=1)


def test_limits_show_what_holds(suite: Suite) -> None:
    suite(
        """
        import os, pytest

        @pytest.mark.sandbox(cpus=64, disk="1g")
        def test_it(sandbox, sandbox_runtime, sandbox_factory):
            info = sandbox_runtime.info()
            assert sandbox.limits.cpus == info.cpus
            assert bool(sandbox.limits.disk) == info.disk_limit
            small = sandbox_factory(memory="64m")
            assert sandbox_factory(snapshot=small.snapshot(), timeout=50).limits.memory == 64 << 20
        """
    ).assert_outcomes(passed=1)


def test_a_command_that_ran_out_of_time_is_in_the_report(suite: Suite) -> None:
    result = suite(
        """
        def test_it(sandbox):
            sandbox.run(["sh", "-c", "echo halfway; sleep 60"], timeout=1)
        """
    )
    result.stdout.fnmatch_lines(["*echo halfway; sleep 60*", "*| halfway"])
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_it - install: timeout: *"])
    assert "live_system.py" not in result.stdout.str()


@on["docker"]
def test_absence_is_said_without_asking(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/nothing.sock")
    monkeypatch.delenv("PYTEST_SANDBOX_REQUIRE", raising=False)
    result = suite("def test_it(sandbox): pass\n")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["sandbox: 1 skipped: image: host: *next: *"])


@pytest.mark.parametrize(
    "mark",
    ["memory='1k'", "mounts=[('/tmp', 'data')]", "image='localhost:9/none:1'", "image='UPPER:x'"],
)
def test_what_the_engine_refuses_is_no_skip(suite: Suite, mark: str) -> None:
    result = suite(f"import pytest\n@pytest.mark.sandbox({mark})\ndef test_it(sandbox): pass\n")
    result.assert_outcomes(errors=1)


def test_files_move_as_cp_would_move_them(suite: Suite) -> None:
    suite(
        """
        import errno, pytest

        @pytest.mark.sandbox(tmpfs={"/scratch": "8m"})
        def test_it(sandbox, tmp_path):
            one = tmp_path / "x"
            one.write_text("x")
            sandbox.run(["sh", "-c", "mkdir -p /t/x; touch /t/x/kept; ln -s /srv/to /srv/ln; "
                         "ln -s /srv/loop /srv/loop; echo seen > /scratch/a"], check=True)
            with pytest.raises(IsADirectoryError):
                sandbox.write_text("/srv", "x")
            with pytest.raises(IsADirectoryError):
                sandbox.copy_in(one, "/t/")
            with pytest.raises(NotADirectoryError):
                sandbox.copy_in(tmp_path, "/etc/passwd")
            assert sandbox.run(["test", "-e", "/t/x/kept"]).ok
            sandbox.write_text("/srv/ln", "through")
            assert sandbox.read_text("/srv/to") == "through"
            sandbox.copy_in(tmp_path, "/new/")
            assert sandbox.read_text("/new/x") == "x"
            with pytest.raises(OSError) as loop:
                sandbox.read_text("/srv/loop")
            assert loop.value.errno == errno.ELOOP
            # mounts, which an engine's archives do not see
            assert sandbox.read_text("/scratch/a") == "seen\\n"
            sandbox.write_text("/scratch/b", "written")
            assert sandbox.run(["cat", "/scratch/b"]).stdout == "written"
            assert sandbox.read_text("/proc/version").startswith("Linux")
            with pytest.raises(PermissionError, match="/scratch"):
                sandbox.copy_out("/scratch", tmp_path / "out")
            sandbox.write_text("/etc/hosts", "127.0.0.1 here\\n")
            assert sandbox.read_text("/etc/hosts") == "127.0.0.1 here\\n"
        """
    ).assert_outcomes(passed=1)


def test_closed_is_closed_and_reports_keep_little(suite: Suite) -> None:
    suite(
        """
        import pytest
        from pytest_sandbox import SandboxGone

        def test_closed(sandbox):
            child = sandbox.fork()
            child.close()
            for use in (lambda: child.run(["true"]), child.changes, child.snapshot, child.stats):
                with pytest.raises(SandboxGone):
                    use()

        @pytest.mark.parametrize("n", range(4))
        def test_loud(sandbox, n):
            for _ in range(10):
                sandbox.run(["sh", "-c", "head -c 3000000 /dev/zero | tee /dev/stderr"])

        def test_memory():
            status = open("/proc/self/status").read()
            assert int(status.split("VmRSS:")[1].split()[0]) < 200 << 10
        """
    ).assert_outcomes(passed=6)


def test_a_cache_folder_that_cannot_be_made_is_an_error_that_says_so(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", "/proc/x")
    result = suite("def test_it(sandbox): pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*image: host: *next: set PYTEST_SANDBOX_CACHE*"])
