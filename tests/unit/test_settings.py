"""Settings: sources, precedence, values that are refused."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import UsageError
from pytest_sandbox.options import RUNTIMES
from pytest_sandbox.settings import parse_age, read_settings


def read(option=None, environ=None, ini=None, **more):
    return read_settings((option or {}).get, (ini or {}).get, environ or {}, **more)


def test_an_option_wins_over_the_environment_and_that_over_ini():
    sources = ({"cpus": "1.5"}, {"PYTEST_SANDBOX_CPUS": "2.5"}, {"cpus": 3.5})
    assert read(*sources).cpus == 1.5
    assert read({}, *sources[1:]).cpus == 2.5
    found = read({}, {}, sources[2])
    assert (found.cpus, found.given) == (3.5, {"cpus"})
    assert read().given == frozenset()


@pytest.mark.parametrize("key", ["cpus", "timeout", "build_timeout", "build_cpus"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(key, value):
    name = key.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^resolve: host: --sandbox-{name}: '{value}' is not f"):
        read({key: value})
    with pytest.raises(UsageError, match=f"PYTEST_SANDBOX_{key.upper()}: .* is not finite"):
        read(environ={f"PYTEST_SANDBOX_{key.upper()}": value})
    with pytest.raises(UsageError, match=f"ini key sandbox_{key}: nan is not finite"):
        read(ini={key: float("nan")})


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("cpus", "0", "not above zero"),
        ("timeout", "-3", "not above zero"),
        ("pids", "1.5", "is no whole number"),
        ("pool", "-1", "is no whole number"),
        ("pool", "few", "is no whole number"),
        ("pids", "inf", "is no whole number"),
        ("memory", "much", "is no size"),
        ("network", "lan", "use one of none, bridge, host"),
        ("image_age", "nan", "is no age"),
        ("image_age", "infd", "is no age"),
        ("image_age", "-1d", "is no age"),
        ("rebuild", "perhaps", "neither true nor false"),
    ],
)
def test_values_that_are_refused(key, value, wrong):
    with pytest.raises(UsageError, match=wrong):
        read(environ={f"PYTEST_SANDBOX_{key.upper()}": value})


def test_a_great_whole_number_is_a_number():
    assert read({"pids": "1" + "0" * 400}).pids == 10**400


def test_no_pool_can_be_asked_for_everywhere():
    for sources in (({"pool": "0"},), ({}, {"PYTEST_SANDBOX_POOL": "0"}), ({}, {}, {"pool": 0})):
        assert read(*sources).pool == 0
    assert read().pool == 8


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("1.5h", 5400), ("2", 172800), (7, 604800), ("0s", 0)]
)
def test_ages(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("name", [*RUNTIMES, "unix:///run/docker.sock", "tcp://127.0.0.1:2375"])
def test_known_runtimes_and_addresses(name):
    assert read({"runtime": name}).runtime == name


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown runtime 'dokcer'; next: use one of auto, oci"):
        read({"runtime": "dokcer"})
    assert read({"runtime": "mine"}, any_runtime=True).runtime == "mine"


def test_pytest_refuses_an_unknown_runtime_before_it_collects(pytester: pytest.Pytester):
    pytester.makeini("[pytest]\n")
    pytester.makepyfile("raise SystemExit('collected')")
    result = pytester.runpytest_subprocess("--sandbox-runtime=dokcer", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --sandbox-runtime: unknown runtime 'dokcer'; next: use one of auto, oci, *"]
    )


def test_a_plugin_that_gives_runtimes_may_name_them_itself(pytester: pytest.Pytester):
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(
        "from pytest_sandbox import FakeRuntime\n\n"
        "def pytest_sandbox_runtime(config, name):\n"
        "    return FakeRuntime() if name == 'mine' else None\n"
    )
    pytester.makepyfile(
        "def test_it(sandbox_runtime):\n    assert sandbox_runtime.name == 'fake'\n"
    )
    pytester.runpytest("--sandbox-runtime=mine").assert_outcomes(passed=1)
    # What it does not know either is refused when an engine is needed.
    result = pytester.runpytest("--sandbox-runtime=other")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*unknown runtime 'other'*"])
